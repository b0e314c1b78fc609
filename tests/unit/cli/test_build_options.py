"""What a build's options are refused for, before anything is fetched or made; and whose logs are whose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kwdb_build.cli.calllogs import logs_of_call
from kwdb_build.cli.main import main
from kwdb_build.errors import ExitCode


@pytest.mark.parametrize("verb", ["build", "check", "plan", "upgrade"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "4m"), "no compiler runs within 4.0 MiB"), (("--memory", "-5"), "not a size: '-5'"),
        (("--cpus", "0.001"), "a build cannot run on 0.001 processors"), (("--cpus", "inf"), "finite"),
        (("--cpus", "nan"), "setting cpus"), (("--jobs", "100000"), "0<=x<=1024"),
        (("--toolchain", "kwdb-3.3"), "no toolchain named 'kwdb-3.3'"), (("--sign", "pgp:me"), "cannot sign with"),
        (("--asan", "--cmake-var", "WITH_ASAN=OFF"), "contradict each other"),
        (("--make-var", "WITH_ASAN=ON"), "--asan builds with"),
    ],
)
def test_what_no_build_can_be_made_with(
    verb: str, words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-y"] if verb == "upgrade" else []
    assert main([verb, "V3.2.1", "--home", str(tmp_path), *more, *words]) == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "logs"] == [], "nothing was fetched or made"


@pytest.mark.parametrize(
    ("name", "value", "said"), [("JOBS", "100000", "setting jobs"), ("CACHE_SIZE", "1m", "keeps nothing"),
                                ("CACHE_SIZE", "lots", "not a size")],
)
def test_settings_from_elsewhere_are_looked_at_as_well(
    name: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KWDB_BUILD_{name}", value)
    assert main(["build", "V3.2.1", "--home", str(tmp_path)]) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_each_call_has_logs_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    for number in range(40):
        old = tmp_path / "logs" / f"20250101T0000{number:02}Z-{gone.pid}"
        old.mkdir(parents=True)
        if number % 8:
            (old / "build.log").write_text("x")
    living = tmp_path / "logs" / f"20240101T000000Z-{os.getppid()}"
    living.mkdir()
    (tmp_path / "logs" / "restart.log").write_text("x")
    mine = logs_of_call(tmp_path)
    assert mine.name.endswith(f"Z-{os.getpid()}")
    assert not mine.exists(), "only a log makes it"
    kept = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert {living.name, "restart.log"} <= set(kept)
    numbers = [int(name[13:15]) for name in kept if name.startswith("2025")]
    assert numbers == [number for number in range(40) if number % 8][-30:]
