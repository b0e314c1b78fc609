"""What stands in the way of a sandbox, in plain words; and the options of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build.engine import bubblewrap
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.errors import EngineError, ExitCode


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="bubblewrap is not installed") as caught:
        bubblewrap.program()
    assert "install bubblewrap" in caught.value.hint
    assert caught.value.exit_code == ExitCode.ENGINE


@pytest.mark.parametrize(("text", "version"), [("bubblewrap 0.8.0\n", "0.8.0"), ("bubblewrap 0.4.0", "0.4.0")])
def test_version(text: str, version: str) -> None:
    assert bubblewrap.check_version(text) == version


@pytest.mark.parametrize("text", ["bubblewrap 0.3.3", "something else", ""])
def test_too_old(text: str) -> None:
    with pytest.raises(EngineError, match="too old"):
        bubblewrap.check_version(text)


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ],
)
def test_the_setting_that_forbids_it_is_named(setting: str, value: str, remedy: str) -> None:
    said = "bwrap: No permissions to create new namespace"
    error = bubblewrap.refused(said, {setting: value})
    assert "user namespaces are switched off" in error.message
    assert error.context == f"{said}\n{setting} = {value}"
    assert remedy in error.hint


def test_in_a_container() -> None:
    allowed = {"user.max_user_namespaces": "96000"}
    no_proc = bubblewrap.refused("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", allowed)
    assert "/proc" in no_proc.message
    assert "systempaths=unconfined" in no_proc.hint
    other = bubblewrap.refused("bwrap: Creating new namespace failed: Operation not permitted", allowed)
    assert "seccomp=unconfined" in other.hint


def test_options(tmp_path: Path) -> None:
    for name in ("usr", "etc", "proc", "dev", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin").symlink_to("usr/bin")
    mounts = (Mount(source=Path("/host/work"), target="/work", read_only=False), Mount(source=Path("/host/x"), target="/x"))
    spec = RunSpec(image="i", argv=("make",), uid=5, gid=6, workdir="/work", mounts=mounts, environment={"A": "secret"})
    options = bubblewrap.sandbox(spec, tmp_path, mounts, seen_rootfs=Path("/image"), userns=None)
    text = " ".join(options)
    assert "--unshare-user --uid 5 --gid 6" in text
    for wanted in (
        "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--die-with-parent", "--cap-drop ALL",
        "--hostname kwdb-build", "--ro-bind /image/usr /usr", "--ro-bind /image/etc /etc", "--symlink usr/bin /bin",
        "--bind /host/work /work", "--ro-bind /host/x /x", "--remount-ro / --chdir /work",
    ):
        assert wanted in text
    assert "/image/dev" not in text
    assert "/image/proc" not in text
    assert "secret" not in text, "a process list shows options to everybody"
    assert "--userns 9 --uid 5" in " ".join(
        bubblewrap.sandbox(spec, tmp_path, mounts, seen_rootfs=Path("/image"), userns=9)
    )


def test_root_puts_things_within_reach_first(tmp_path: Path) -> None:
    mounts = (Mount(source=Path("/closed/work"), target="/work", read_only=False),)
    options, seen, moved = bubblewrap.within_reach(tmp_path, mounts)
    text = " ".join(options)
    assert f"--ro-bind {tmp_path} {seen}" in text
    assert f"--bind /closed/work {moved[0].source}" in text
    assert (moved[0].target, moved[0].read_only) == ("/work", False)
