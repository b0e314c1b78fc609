"""Fetching over sockets: every way a host can be wrong, slow or gone, and what is left afterwards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import KwdbBuildError, SourceError, UnreachableSourceError
from kwdb_build.source.reference import Redirect
from tests.ports import free_port
from tests.unit.source.gitserver import git_daemon, http_server, self_signed, silent_port
from tests.unit.source.sourcebox import HOST, Machine, Upstream, git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.source.gitserver import Behaviour


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GIT_SSL_CAINFO"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(upstream: Upstream) -> Iterator[tuple[str, Behaviour]]:
    with http_server(upstream.root / "mirror") as (base, behaviour):
        yield f"{base}kwdb/", behaviour


def to(base: str) -> tuple[Redirect, ...]:
    return (Redirect(prefix=HOST, replacement=base),)


def test_http_end_to_end(machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]) -> None:
    tree = machine.fetch("V1.0.0", redirects=to(served[0]))
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.0.0"]
    assert tree.url == f"{HOST}kwdb.git"
    assert len(machine.caches) == 4


def test_git_protocol_end_to_end(machine: Machine, upstream: Upstream) -> None:
    with git_daemon(upstream.root / "mirror") as base:
        tree = machine.fetch("master", redirects=to(f"{base}kwdb/"))
        with pytest.raises(SourceError, match="there is no git repository"):
            machine.fetch("master", url=f"{base}kwdb/nothing.git")
    assert tree.commit == upstream.commits["master"]


def test_when_the_host_is_gone_tags_and_commits_come_from_the_cache_but_branches_do_not(
    machine: Machine, upstream: Upstream
) -> None:
    with http_server(upstream.root / "mirror") as (base, _):
        first = machine.fetch("V1.0.0", redirects=to(f"{base}kwdb/"))
    again = machine.fetch("V1.0.0", redirects=to(f"{base}kwdb/"))
    assert again == first
    assert any("cannot be reached" in note and "from the cache" in note for note in machine.said.notes)
    for ref in (first.commit, first.commit[:9], "refs/tags/V1.0.0"):
        assert machine.fetch(ref, redirects=to(f"{base}kwdb/")).commit == first.commit
    for ref in ("master", "V7.7.7", "e" * 40, "e" * 8):
        with pytest.raises(UnreachableSourceError, match="nobody answers"):
            machine.fetch(ref, redirects=to(f"{base}kwdb/"))


def test_a_name_that_does_not_resolve(machine: Machine) -> None:
    with pytest.raises(UnreachableSourceError, match=r"cannot be resolved \(DNS\)") as caught:
        machine.fetch("V1.0.0", url="https://no-such-host.invalid/kwdb.git", redirects=())
    assert "--redirect" in caught.value.hint
    assert caught.value.log == machine.log


@pytest.mark.parametrize("scheme", ["http", "git", "ssh"])
def test_a_refused_connection(machine: Machine, scheme: str) -> None:
    with pytest.raises(UnreachableSourceError, match="nobody answers"):
        machine.fetch("V1.0.0", url=f"{scheme}://127.0.0.1:{free_port()}/kwdb.git", redirects=())


@pytest.mark.parametrize("scheme", ["http", "git"])
def test_a_host_that_accepts_and_says_nothing(machine: Machine, scheme: str) -> None:
    with silent_port() as port, pytest.raises(UnreachableSourceError, match=r"nothing arrived|too slow"):
        machine.fetch("V1.0.0", url=f"{scheme}://127.0.0.1:{port}/kwdb.git", redirects=(), stall_timeout_s=1)


def test_a_certificate_nobody_trusts_until_the_user_says_so(
    machine: Machine, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path)
    with http_server(upstream.root / "mirror", certificate=(certificate, key)) as (base, _):
        with pytest.raises(UnreachableSourceError, match="no trusted TLS") as caught:
            machine.fetch("V1.0.0", redirects=to(f"{base}kwdb/"))
        assert "http.sslCAInfo" in caught.value.hint
        settings = tmp_path / "gitconfig"
        settings.write_text(f"[http]\n\tsslCAInfo = {certificate}\n")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
        assert machine.fetch("V1.0.0", redirects=to(f"{base}kwdb/")).commit == upstream.commits["V1.0.0"]


@pytest.mark.parametrize(
    ("status", "page", "words", "kind"),
    [
        (404, b"not here", "there is no git repository", SourceError),
        (200, b"<html>a web page</html>", "a web page and no repository", SourceError),
        (403, b"go away", "refused the login", SourceError),
        (500, b"oops", "overloaded or broken", UnreachableSourceError),
        (503, b"later", "overloaded or broken", UnreachableSourceError),
    ],
)
def test_answers_that_are_no_git(
    machine: Machine, served: tuple[str, Behaviour], status: int, page: bytes, words: str, kind: type[KwdbBuildError]
) -> None:
    served[1].status, served[1].page = status, page
    with pytest.raises(kind, match=words):
        machine.fetch("V1.0.0", redirects=to(served[0]))


def test_a_login_is_not_asked_for_on_the_terminal(machine: Machine, served: tuple[str, Behaviour]) -> None:
    served[1].login = "user:word"
    with pytest.raises(SourceError, match="refused the login"):
        machine.fetch("V1.0.0", redirects=to(served[0]))


def test_a_password_in_the_url_works_and_is_seen_nowhere(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, behaviour = served
    behaviour.login = "user:s3cr%t@x"
    store = tmp_path / "stored"
    settings = tmp_path / "gitconfig"
    settings.write_text(f"[credential]\n\thelper = store --file={store}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    watched = watch_arguments(tmp_path, monkeypatch)
    secret_base = base.replace("http://", "http://user:s3cr%25t%40x@")
    tree = machine.fetch("V1.0.0", url=f"{secret_base}kwdb.git", redirects=to(secret_base))
    assert behaviour.authorizations
    assert tree.url == f"{base}kwdb.git"
    arguments = watched.read_text()
    assert "remote-http" in arguments
    written = [path for path in machine.home.rglob("*") if path.is_file()]
    shown = "\n".join([arguments, *machine.said.notes, *(text for text, _, _ in machine.said.updates), repr(tree)])
    for secret in ("s3cr", "user:"):
        assert secret not in shown
        assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not store.exists()
    behaviour.login = "user:other"
    with pytest.raises(SourceError, match="refused the login") as caught:
        machine.fetch("master", url=f"{secret_base}kwdb.git", redirects=to(secret_base))
    assert "s3cr" not in f"{caught.value} {caught.value.context} {caught.value.hint}"


def watch_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a git in front that writes down its arguments, also those of the children that git starts."""
    import shutil

    real, record, front = shutil.which("git"), tmp_path / "arguments", tmp_path / "front"
    core = git(tmp_path, "--exec-path")
    front.mkdir()
    for name, target in (("git", real), ("git-remote-http", f"{core}/git-remote-http")):
        script = front / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> {record}\nexec {target} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{front}{os.pathsep}{os.environ['PATH']}")
    # git looks for its helpers here before PATH.
    (tmp_path / "exec").mkdir()
    for program in os.listdir(core):  # noqa: PTH208  # names only
        where = front / program if (front / program).exists() else f"{core}/{program}"
        (tmp_path / "exec" / program).symlink_to(where)
    monkeypatch.setenv("GIT_EXEC_PATH", str(tmp_path / "exec"))
    return record


def test_a_cut_connection_leaves_a_sound_cache(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    upstream.main.commit("something big", {"big.bin": os.urandom(400_000)})
    upstream.push()
    behaviour.cut_after_bytes = 100_000
    with pytest.raises(UnreachableSourceError, match="cut in the middle"):
        machine.fetch("master", redirects=to(base))
    assert not [path for cache in machine.caches for path in cache.rglob("tmp_*")]
    assert machine.checkouts == []
    behaviour.cut_after_bytes = -1
    assert machine.fetch("master", redirects=to(base)).commit == upstream.main.head


def test_a_submodule_host_that_is_cut_names_the_submodule(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.cut_after_bytes = 100
    local = Redirect(prefix=f"{HOST}kwdb.git", replacement=str(upstream.main.bare))
    with pytest.raises(UnreachableSourceError, match=r"submodule kw\S+ .*cut in the middle") as caught:
        machine.fetch("V1.0.0", redirects=(local, *to(base)))
    named = caught.value.message.split()[1]
    assert upstream.pins["V1.0.0"][named] in caught.value.context


def test_a_transfer_that_stalls_is_given_up(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.silent.set()
    with pytest.raises(UnreachableSourceError, match=r"nothing arrived|too slow|cut in the middle"):
        machine.fetch("V1.0.0", redirects=to(base), stall_timeout_s=1)
    behaviour.silent.clear()
    assert machine.fetch("V1.0.0", redirects=to(base)).commit == upstream.commits["V1.0.0"]
