"""What builds leave for the next one: it must save work, and never change a byte."""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kwdb_build.build.caches import DIRECTORY, place_of
from kwdb_build.build.history import FILE, BuildHistory, BuildRecord
from kwdb_build.build.recipe import SOURCE
from kwdb_build.build.remote import shared
from kwdb_build.build.watch import parse_stats
from kwdb_build.console import Progress
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import UsageError
from kwdb_build.model import Artifact, Toolchain
from tests.integration.redisbox import KEY, redis_client, resp, through
from tests.integration.tool import Answer, Tool
from tests.integration.webbox import running_web
from tests.minikwdb.repositories import MiniRepositories
from tests.notes import Notes
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BUILD_UID = 65532 if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def warm(
    mini_build: Callable[[str], Artifact], mini_home: Path, mini_toolchain: Toolchain, repositories: MiniRepositories,
    engine_address: str, tmp_path: Path,
) -> Tool:
    """A command line with an empty store, and caches that hold what V1.1.0 is made of."""
    mini_build("V1.1.0")
    home = tmp_path / "home"
    cache = place_of(mini_home / DIRECTORY, mini_toolchain)
    target = place_of(home / DIRECTORY, mini_toolchain)
    target.parent.mkdir(parents=True, mode=0o700)
    subprocess.run(["cp", "-a", str(cache), str(target)], check=True)
    return Tool(home=home, repositories=repositories, docker_host=engine_address)


def files_of(answer: Answer) -> dict[str, str]:
    assert answer.code == 0, answer.err
    return {entry["path"]: entry["sha256"] for entry in answer.json["artifact"]["files"]}


def last_build(tool: Tool) -> BuildRecord:
    return BuildHistory(tool.home / FILE).all()[-1]


def changed(repositories: MiniRepositories, name: str, after_line: str, more: str, target: Path) -> Path:
    """A patch that adds a line which no build has seen before."""
    before = subprocess.run(
        ["git", "-C", str(repositories.main), "show", f"V1.1.0:{name}"], check=True, capture_output=True, text=True
    ).stdout.splitlines(keepends=True)
    at = before.index(f"{after_line}\n") + 1
    after = [*before[:at], more.format(uuid.uuid4().hex) + "\n", *before[at:]]
    target.write_text("".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")))
    return target


def test_one_changed_file_is_one_compilation(
    warm: Tool, mini_build: Callable[[str], Artifact], repositories: MiniRepositories, tmp_path: Path
) -> None:
    base = {entry.path: entry.sha256 for entry in mini_build("V1.1.0").files}
    go = changed(
        repositories, "kwbase/pkg/sql/system.go", ")", 'const unseen = "{}"', tmp_path / "go.patch"
    )
    built = files_of(warm("build", "V1.1.0", "--patch", str(go), "--json"))
    use = last_build(warm).cache
    assert use.files == (), "no C or C++ was compiled"
    assert 0 < use.go_packages < 10, "the changed package and those that import it"
    assert {name for name in built if built[name] != base[name]} == {"bin/kwbase"}
    cpp = changed(
        repositories, "kwdbts2/src/table.cpp", "namespace kwdbts {", 'const char *unseen() {{ return "{}"; }}',
        tmp_path / "cpp.patch",
    )
    files_of(warm("build", "V1.1.0", "--patch", str(cpp), "--json"))
    record = last_build(warm)
    assert [Path(name).name for name in record.cache.files] == ["table.cpp"]
    assert record.cache.hits >= 7, "all else that CMake compiles"
    assert (record.outcome, record.warm) == ("built", True)
    assert record.memory_bytes > 10 << 20


def test_a_release_after_another_has_the_bytes_of_one_without_caches(warm: Tool, tmp_path: Path) -> None:
    """Go's cache does not know the headers outside of a package: V1.0.0's would stay in V1.1.0's kwbase."""
    files_of(warm("build", "V1.0.0", "--json"))
    second = warm("build", "V1.1.0", "--json")
    assert "the libraries that come with this source are there from an earlier build" in second.err
    after = files_of(second)
    cold = Tool(home=tmp_path / "cold", repositories=warm.repositories, docker_host=warm.docker_host)
    assert after == files_of(cold("build", "V1.1.0", "--no-cache", "--json"))


def test_a_header_that_comes_before_another_one_is_seen_by_what_includes_that(
    warm: Tool, mini_build: Callable[[str], Artifact], tmp_path: Path
) -> None:
    """ccache's quick look-up knows what a file included, and not that it would include something else now."""
    patch = tmp_path / "shadow.patch"
    lines = ["#pragma once", "#include_next <kwdbts2/ts_value.h>", "#define KWDBTS2_SHADOWED 1", "namespace kwdbts {",
             'static const char shadowed[] __attribute__((used)) = "a header that came later";', "}"]
    patch.write_text(
        "--- /dev/null\n+++ b/kwdbts2/src/kwdbts2/ts_value.h\n"
        f"@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)
    )
    before = {entry.path: entry.sha256 for entry in mini_build("V1.1.0").files}
    answer = warm("build", "V1.1.0", "--patch", str(patch), "--json")
    after = files_of(answer)
    assert after["lib/libkwdbts2.so"] != before["lib/libkwdbts2.so"]
    assert b"a header that came later" in (Path(answer.json["artifact"]["path"]) / "lib/libkwdbts2.so").read_bytes()


def added(files: dict[str, list[str]], target: Path) -> Path:
    """A patch with new files."""
    target.write_text("".join(
        f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)
        for name, lines in files.items()
    ))
    return target


def test_another_commit_with_a_new_header_compiles_no_cpp(warm: Tool, tmp_path: Path) -> None:
    """KWDB's CMake gives the commit's name to every compiler, and nothing reads it there."""
    header = added({"kwdbts2/src/not_read_yet.h": ["#pragma once"]}, tmp_path / "header.patch")
    files_of(warm("build", "patched", "--patch", str(header), "--json"))
    use = last_build(warm).cache
    assert [name for name in use.files if name.endswith(".cpp")] == [], "what cgo compiles counts all headers"
    assert use.hits >= 8


@pytest.mark.slow  # test_build_kept has the shapes of KWDB's real libraries
def test_a_header_of_kwdbs_own_leaves_the_libraries_that_come_with_it(
    warm: Tool, repositories: MiniRepositories, tmp_path: Path
) -> None:
    def build(number: int) -> Answer:
        header = changed(
            repositories, "kwdbts2/src/tag_file.h", "namespace kwdbts {", 'inline const char* unseen() {{ return "{}"; }}',
            tmp_path / f"{number}.patch",
        )
        answer = warm("build", "V1.1.0", "--patch", str(header), "--json")
        files_of(answer)
        return answer

    build(1)
    assert "the libraries that come with this source are there from an earlier build" in build(2).err
    assert "tag_file.cpp" in {Path(name).name for name in last_build(warm).cache.files}, "KWDB's own were compiled"


def test_what_ccache_is_not_told_of_is_built_right(warm: Tool, tmp_path: Path) -> None:
    """A source that reads the commit's name, and a file that only the assembler reads."""
    patch = tmp_path / "reads.patch"
    built = []
    for ref, embedded in (("V1.1.0", "first words"), ("patched", "second words")):
        added({
            "kwdbts2/src/embedded.txt": [embedded],
            "kwdbts2/src/embedding.inc": [
                'const char *commit_of_build() { return "commit " GIT_COMMIT_ID; }',
                f'__asm__(".section .rodata\\n.incbin \\"{SOURCE}/kwdbts2/src/embedded.txt\\"\\n.text");',
            ],
        }, patch)
        changed(
            warm.repositories, "kwdbts2/src/table.cpp", '#include "table.h"',
            '#include "embedding.inc"', tmp_path / "include.patch",
        )
        answer = warm(
            "build", ref, "--patch", str(patch), "--patch", str(tmp_path / "include.patch"), "--json",
        )
        files_of(answer)
        library = (Path(answer.json["artifact"]["path"]) / "lib/libkwdbts2.so").read_bytes()
        assert embedded.encode() in library
        built.append(library)
        assert f"commit {answer.json['artifact']['commit']}".encode() in library
    assert built[0] != built[1]


@pytest.mark.slow
def test_a_damaged_cache_changes_nothing_but_the_time(
    warm: Tool, mini_build: Callable[[str], Artifact], mini_toolchain: Toolchain
) -> None:
    data = place_of(warm.home / DIRECTORY, mini_toolchain) / "data"
    harmed = 0
    for number, path in enumerate(sorted(path for path in data.rglob("*") if path.is_file())):
        if path.name.endswith("-d") and number % 3 and path.stat().st_size > 1 << 16:
            continue  # most of the standard library stays, or this would be a cold build
        content = bytearray(path.read_bytes())
        if content and path.suffix != ".txt":
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content if number % 2 else content[:-1])
            harmed += 1
    assert harmed > 100
    answer = warm("build", "V1.1.0", "--json", timeout_s=600)
    assert files_of(answer) == {record.path: record.sha256 for record in mini_build("V1.1.0").files}
    assert "damaged entries of Go's build cache were removed" in answer.err


@pytest.mark.slow
def test_a_cache_that_others_may_write_to_is_not_used(
    warm: Tool, mini_build: Callable[[str], Artifact], mini_toolchain: Toolchain
) -> None:
    place = place_of(warm.home / DIRECTORY, mini_toolchain)
    (place / "data" / "ccache").chmod(0o777)
    process = warm.begin("build", "V1.1.0")
    assert process.stderr is not None
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "are not used: others may write to" in line:
                break
        else:
            pytest.fail("".join(seen))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_the_second_build_of_a_key_waits_for_the_first_and_takes_its_result(warm: Tool) -> None:
    first = warm.begin("build", "V1.1.0", "--json")
    deadline = time.monotonic() + 120
    while not list((warm.home / "work").glob("build-*/gopath/src/gitee.com/kwbasedb/build/CMakeCache.txt")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = warm("build", "V1.1.0", "--json", timeout_s=600)
    out, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    assert "another kwdb-build is building" in second.err
    assert second.json["artifact"] == json.loads(out)["artifact"]
    assert len(BuildHistory(warm.home / FILE).all()) == 1


def compiled(
    engine: DockerEngine, image: str, place: Path, url: str, password_file: Path | None
) -> tuple[list[str], bytes, list[str]]:
    """Compile one file on a machine with an empty cache of its own: ccache's words, the object, and what was said."""
    work = place / "work"
    work.mkdir(parents=True)
    (work / "answer.cc").write_text("int answer() { return 42; }\n")
    for path in (work, work / "answer.cc"):
        os.chown(path, BUILD_UID, BUILD_UID if os.geteuid() == 0 else os.getegid())
    notes = Notes()
    with shared(url, password_file, scratch=place, progress=notes) as remote:
        result = engine.run(
            RunSpec(
                image=image, argv=("g++", "-c", "answer.cc"), uid=BUILD_UID, gid=BUILD_UID, workdir="/kwdb",
                mounts=(Mount(source=work, target="/kwdb", read_only=False), *remote.mounts),
                environment={"PATH": "/usr/lib/ccache:/usr/bin:/bin", "CCACHE_DIR": "/kwdb/ccache", "TMPDIR": "/kwdb",
                             "CCACHE_STATSLOG": "/kwdb/stats", "CCACHE_COMPILERCHECK": "content",
                             **remote.environment},
            ),
            on_line=notes.note, log=place / "log",
        )
    assert result.returncode == 0, notes.notes
    words = (work / "stats").read_text().splitlines()
    return words, (work / "answer.o").read_bytes(), notes.notes


def test_machines_share_a_cache_through_redis_although_builds_have_no_network(
    engine: DockerEngine, mini_toolchain: Toolchain, redis: tuple[int, str], tmp_path: Path
) -> None:
    port, password = redis
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    url, image = f"redis://127.0.0.1:{port}/3", mini_toolchain.image_tag
    words, first, notes = compiled(engine, image, tmp_path / "one", url, file)
    assert parse_stats(words).misses == 1
    assert notes == []
    words, second, _ = compiled(engine, image, tmp_path / "other", url, file)
    assert (parse_stats(words).hits, parse_stats(words).shared) == (1, 1), words
    assert first == second
    with redis_client(port, password) as said:
        assert said("SELECT", "3") == b"+OK\r\n"
        assert int(said("DBSIZE")[1:]) > 0, "in the database of the address"


REFUSED = {
    "the password": resp("CONFIG", "GET", "requirepass"), "flush": resp("FLUSHALL"), "lower case": resp("flushall"),
    "other keys": resp("GET", "session:root"), "all keys": resp("KEYS", "*"), "a script": resp("EVAL", "return 1", "0"),
    "another database": resp("SELECT", "0"), "log in": resp("AUTH", "x"), "hello": resp("HELLO", "3"),
    "several keys": resp("DEL", KEY, "session:root"), "options": resp("SET", KEY, "x", "EX"),
    "module": resp("MODULE", "LOAD", "/x.so"), "inline": b"FLUSHALL\r\n", "inline first": b"\r\nFLUSHALL\r\n",
    "no count": b"*\r\n", "negative": b"*-1\r\n" + resp("FLUSHALL"), "nothing": b"*0\r\n" + resp("FLUSHALL"),
    "short length": b"*2\r\n$3\r\nGET\r\n$1\r\n" + KEY.encode() + b"\r\n",
    "long length": b"*2\r\n$300000000\r\n" + b"G" * 100,
    "hidden behind a key": b"*2\r\n$3\r\nGET\r\n$60\r\n" + KEY.encode() + b"\r\n" + resp("FLUSHALL"),
    "number with a sign": b"*+1\r\n$8\r\nFLUSHALL\r\n", "newline alone": b"*1\n$8\nFLUSHALL\n",
}


def test_a_build_gets_from_redis_what_ccache_needs_and_nothing_else(redis: tuple[int, str], tmp_path: Path) -> None:
    port, password = redis
    file = tmp_path / "password"
    file.write_text(password)
    with redis_client(port, password) as said:
        said("SELECT", "3")
        said("SET", "session:root", "precious")
        notes = Notes()
        with shared(f"redis://127.0.0.1:{port}/3", file, scratch=tmp_path, progress=notes):
            large = "v" * 3_000_000 + "\r\n" + resp("FLUSHALL").decode()
            assert through(tmp_path, resp("SET", KEY, large) + resp("EXISTS", KEY)) == b"+OK\r\n:1\r\n"
            assert through(tmp_path, resp("get", KEY)).endswith(large.encode() + b"\r\n")
            assert notes.notes == []
            for what, data in REFUSED.items():
                assert through(tmp_path, data) == b"", what
                assert through(tmp_path, resp("EXISTS", KEY) + data + resp("FLUSHALL")) in {b":1\r\n", b""}, what
            [note] = notes.notes
            assert "refused" in note
            assert through(tmp_path, b"*3\r\n$3\r\nSET\r\n$" + f"{len(KEY)}\r\n{KEY}".encode() + b"\r\n$9\r\ncut") == b""
            assert through(tmp_path, resp("GET", KEY)).endswith(large.encode() + b"\r\n"), "half a value is none"
            assert through(tmp_path, resp("DEL", KEY)) == b":1\r\n"
        assert said("GET", "session:root") == b"$8\r\nprecious\r\n"
        assert said("DBSIZE") == b":1\r\n"


def test_a_shared_cache_that_fails_is_no_failure_of_the_build(
    engine: DockerEngine, mini_toolchain: Toolchain, redis: tuple[int, str], tmp_path: Path
) -> None:
    port, _ = redis
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    image = mini_toolchain.image_tag
    _, _, notes = compiled(engine, image, tmp_path / "one", f"redis://127.0.0.1:{port}", wrong)
    assert any("does not take the password" in note for note in notes)
    _, _, notes = compiled(engine, image, tmp_path / "other", f"redis://127.0.0.1:{free_port()}", None)
    assert any("does not answer" in note for note in notes)


def test_a_redis_that_refuses_is_asked_once_and_a_long_home_is_fine(redis: tuple[int, str], tmp_path: Path) -> None:
    port, password = redis
    wrong, short, long = tmp_path / "password", tmp_path / "s", tmp_path / ("l" * 120)
    wrong.write_text("wrong")
    long.mkdir()
    short.symlink_to(long)
    notes = Notes()
    with redis_client(port, password) as said:

        def connections() -> int:
            return int(said("INFO", "stats").partition(b"total_connections_received:")[2].split()[0])

        before = connections()
        with shared(f"redis://127.0.0.1:{port}", wrong, scratch=long, progress=notes):
            for _ in range(3):
                assert through(short, resp("EXISTS", KEY)) == b""
        assert connections() == before + 1
    assert len(notes.notes) == 1


def test_machines_share_a_cache_through_a_web_server(
    engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path
) -> None:
    """ccache itself, with a token: the first machine's object is the second one's hit."""
    file = tmp_path / "password"
    file.write_text("token\n")
    image = mini_toolchain.image_tag
    with running_web() as web:
        words, first, notes = compiled(engine, image, tmp_path / "one", f"{web.url}/ccache", file)
        assert (parse_stats(words).misses, notes) == (1, [])
        assert web.logins == {"Bearer token"}
        assert all(path.startswith("/ccache/") for path in web.held)
        words, second, _ = compiled(engine, image, tmp_path / "other", f"{web.url}/ccache", file)
        assert (parse_stats(words).hits, parse_stats(words).shared) == (1, 1), words
        assert first == second
        web.status = 500
        words, third, notes = compiled(engine, image, tmp_path / "third", f"{web.url}/ccache", file)
        assert (parse_stats(words).misses, third) == (1, first)
        assert [note for note in notes if "HTTP 500" in note]


def test_machines_share_a_directory(engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path) -> None:
    directory = tmp_path / "common"
    directory.mkdir()
    directory.chmod(0o777)
    compiled(engine, mini_toolchain.image_tag, tmp_path / "one", f"file:{directory}", None)
    words, _, _ = compiled(engine, mini_toolchain.image_tag, tmp_path / "other", f"file:{directory}", None)
    assert parse_stats(words).shared == 1


@pytest.mark.parametrize(
    "url", ["ftp://host", "redis://user:secret@host", "redis://host/x", "redis://", "file:/no/such/directory", "x",
            "http://user:secret@host", "http://host:port", "https://", "http://host/a?b", "http://host/a b"]
)
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, shared(url, None, scratch=tmp_path, progress=Progress()):
        pass
    assert "secret" not in f"{caught.value.message}{caught.value.context}"
