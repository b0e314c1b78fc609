"""Building twice, under conditions that must not matter."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kwdb_build.build import conditions
from kwdb_build.config import Settings
from kwdb_build.console import Console
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.files import manifest_of
from kwdb_build.model import Artifact, Toolchain
from kwdb_build.upgrade.workshop import Workshop
from tests.integration.tool import TOOLCHAIN, Tool
from tests.minikwdb.repositories import MiniRepositories

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture
def mini(
    mini_build: Callable[[str], Artifact], mini_home: Path, repositories: MiniRepositories, engine_address: str
) -> Tool:
    """The command line in the home that all tests share: with builds and warm caches."""
    mini_build("V1.1.0")
    return Tool(home=mini_home, repositories=repositories, docker_host=engine_address)


def test_another_path_clock_zone_locale_user_umask_host_core_count_order_and_cold_caches_give_the_same_bytes(
    mini: Tool,
) -> None:
    answer = mini("build", "V1.1.0", "--verify-reproducible", "--json", timeout_s=1500)
    assert answer.code == 0, answer.err
    found = answer.json["reproducible"]
    assert found["differences"] == []
    assert found["files"] == len(answer.json["artifact"]["files"]) >= 5
    changed = "; ".join(found["changed"])
    for what in ("caches", "path", "clock 1098 days ahead", "zone", "locale", "umask 077", "host name", "backwards",
                 "1 core"):
        assert what in changed
    assert "5 of 5 files are the same" in answer.err


OTHER = conditions.unlike(2, as_root=True)
ZONE = {"TZ": OTHER.environment["TZ"]}
USER = {name: OTHER.environment[name] for name in ("USER", "LOGNAME")}
LOCALE = {name: value for name, value in OTHER.environment.items() if name not in ZONE.keys() | USER.keys()}
ONE_EACH = {
    "nothing but the path and the empty caches": {}, "time zone": {"environment": ZONE},
    "locale": {"environment": LOCALE}, "user id": {"identity": OTHER.identity, "environment": USER},
    "umask": {"umask": OTHER.umask}, "host name": {"hostname": OTHER.hostname}, "clock": {"ahead_s": OTHER.ahead_s},
    "directory order": {"backwards": True}, "1 core": {"cores": 1, "jobs": 1}, "2 cores": {"cores": 2, "jobs": 2},
    "5 jobs": {"jobs": 5}, "warm caches": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ONE_EACH)
def test_each_difference_alone_gives_the_same_bytes(
    mini: Tool, mini_build: Callable[[str], Artifact], mini_home: Path, tmp_path: Path, what: str
) -> None:
    if what == "user id" and os.geteuid() != 0:
        pytest.skip("needs root to build as another user")
    if what == "2 cores" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    artifact = mini_build("V1.1.0")
    settings = Settings(home=mini_home, toolchain=str(TOOLCHAIN), docker_host=mini.docker_host)
    workshop = Workshop(settings, Console(), mini_home / "logs")
    prefix, replacement = mini.repositories.redirect
    tree = workshop.fetch("V1.1.0", url=str(mini.repositories.main), redirects=(f"{prefix}={replacement}",))
    bench = replace(workshop._bench(tree, None), log=tmp_path / "build.log")
    if what != "warm caches":
        bench = replace(bench, work_dir=tmp_path / "another place, with a longer name" / "work")
        bench.work_dir.mkdir(parents=True)
    with bench.run(replace(conditions.USUAL, **ONE_EACH[what]), cold=what != "warm caches") as run:
        run.outcome()
        built = {entry.path: entry.sha256 for entry in manifest_of(run.installed)}
    assert built == {entry.path: entry.sha256 for entry in artifact.files}


@pytest.mark.slow
def test_a_build_that_cannot_be_repeated_is_caught_and_explained(mini: Tool) -> None:
    answer = mini("build", "V1.1.5", "--verify-reproducible", "--json", timeout_s=1500)
    assert answer.code == ExitCode.NOT_REPRODUCIBLE, answer.err
    seen = answer.json["error"]["context"]
    assert "3 of 5 files" in answer.json["error"]["message"]
    by_file = {name: seen.partition(name)[2].partition("\nbin/")[0].partition("\nlib/")[0]
               for name in ("bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so")}
    assert "the time of the build is in it" in by_file["bin/kwbase"]
    assert "the host name of the build machine is in it" in by_file["lib/libcommon.so"]
    assert ".rodata" in by_file["lib/libcommon.so"]
    assert "order:" in by_file["lib/libkwdbts2.so"]
    assert "first" not in seen, seen
    assert [path.name for path in (mini.home / "work").glob("build-*")] == []


def test_no_place_of_this_machine_is_in_a_build(mini: Tool, mini_build: Callable[[str], Artifact]) -> None:
    for ref in ("V1.1.0", "patched"):
        artifact = mini_build(ref)
        for record in artifact.files:
            content = (artifact.path / record.path).read_bytes()
            for trace in (str(mini.home), "/scratch", "/kwdb-cache", "/kwdb-shims"):
                assert trace.encode() not in content, f"{record.path} holds {trace}"


def test_the_other_conditions_are_really_other(
    engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path
) -> None:
    """What a build under them sees, program by program; a comparison that changes nothing would prove nothing."""
    (tmp_path / "elsewhere.c").write_text(conditions.ELSEWHERE_C)
    for name in ("b", "c", "a"):
        (tmp_path / "many" / name).mkdir(parents=True)
    subprocess.run(["chmod", "-R", "a+rwX", str(tmp_path)], check=True)
    tmp_path.chmod(0o777)

    def run(*argv: str, otherwise: bool) -> str:
        lines: list[str] = []
        spec = RunSpec(
            image=mini_toolchain.image_tag, argv=argv, uid=1234, gid=1234, workdir="/x",
            mounts=(Mount(source=tmp_path, target="/x", read_only=False),),
            environment={"PATH": "/usr/bin:/bin", "TMPDIR": "/x", "LC_ALL": "C",
                         **({"LD_PRELOAD": "/x/elsewhere.so"} if otherwise else {})},
        )
        result = engine.run(spec, on_line=lines.append, log=tmp_path / "log")
        assert result.returncode == 0, lines
        return " ".join(lines)

    run("gcc", "-shared", "-fPIC", "-Wall", "-Werror", *conditions.unlike(2, as_root=True).library, "-o", "elsewhere.so",
        "elsewhere.c", "-ldl", otherwise=False)
    now, then = (int(run("date", "+%s", otherwise=otherwise)) for otherwise in (False, True))
    assert 0 <= then - now - conditions.CLOCK_AHEAD_S < 600
    shell_now, shell_then = (
        int(run("bash", "-c", "echo $EPOCHSECONDS", otherwise=otherwise)) for otherwise in (False, True)
    )
    assert 0 <= shell_then - shell_now - conditions.CLOCK_AHEAD_S < 600
    forward = run("find", "many", "-mindepth", "1", otherwise=False).split()
    assert run("find", "many", "-mindepth", "1", otherwise=True).split() == forward[::-1]
    assert len(forward) == 3
    assert run("find", "many", "-mindepth", "1", "-delete", "-print", otherwise=True)
