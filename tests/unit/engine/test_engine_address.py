"""Which engine is meant, and why it cannot be used."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kwdb_build.engine.address import check_api, default_address, is_remote, probe, socket_path, unreachable
from kwdb_build.errors import EngineError


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:///run/docker.sock", "/run/docker.sock"),
        ("unix://run/docker.sock", "/run/docker.sock"),
        ("http+unix:///run/d.sock", "/run/d.sock"),
        ("/run/docker.sock", "/run/docker.sock"),
        ("tcp://127.0.0.1:2375", None),
        ("ssh://me@host", None),
    ],
)
def test_socket_path(address: str, path: str | None) -> None:
    assert socket_path(address) == (Path(path) if path else None)


@pytest.mark.parametrize(
    ("address", "remote"),
    [
        ("unix:///run/docker.sock", False), ("tcp://127.0.0.1:2375", False), ("tcp://localhost:2375", False),
        ("tcp://[::1]:2375", False), ("tcp://192.0.2.7:2376", True), ("tcp://builder:2376", True),
        ("ssh://me@builder", True),
    ],
)
def test_is_remote(address: str, remote: bool) -> None:
    assert is_remote(address) is remote


def test_no_socket_and_no_program_says_install(tmp_path: Path) -> None:
    error = unreachable(
        f"unix://{tmp_path}/none.sock", FileNotFoundError(2, "No such file or directory"), installed=False, user="ann"
    )
    assert "no container engine is installed" in error.message
    assert "docker.io" in error.hint
    assert "podman" in error.hint


def test_no_socket_but_program_says_start(tmp_path: Path) -> None:
    error = unreachable(
        f"unix://{tmp_path}/none.sock", FileNotFoundError(2, "No such file or directory"), installed=True, user="ann"
    )
    assert "does not run" in error.message
    assert "systemctl start docker" in error.hint
    podman = unreachable("unix:///run/podman/podman.sock", FileNotFoundError(2, "gone"), installed=True, user="me")
    assert "systemctl --user start podman.socket" in podman.hint


def test_missing_socket_is_told_by_path(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        probe(f"unix://{tmp_path}/none.sock")
    assert f"{tmp_path}/none.sock" in caught.value.context


def test_stale_socket_says_start(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert path.exists()
    with pytest.raises(EngineError, match="nothing listens") as caught:
        probe(f"unix://{path}")
    assert "refused" in caught.value.context


def test_permission_denied_names_user_and_group(tmp_path: Path) -> None:
    path = tmp_path / "closed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o000)
        was_root = os.geteuid() == 0
        if was_root:  # root may connect to anything: look at it as another user
            for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
                parent.chmod(0o755)
            os.seteuid(65534)
        try:
            with pytest.raises(EngineError, match="may not use") as caught:
                probe(f"unix://{path}")
        finally:
            if was_root:
                os.seteuid(0)
    assert "docker group" in caught.value.hint
    assert "ermission denied" in caught.value.context


def test_tcp_that_nobody_answers() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound, not listening: refused for sure
        port = holder.getsockname()[1]
        with pytest.raises(EngineError, match="cannot be reached") as caught:
            probe(f"tcp://127.0.0.1:{port}")
    assert "--docker-host" in caught.value.hint


@pytest.mark.parametrize("address", ["docker.sock", "npipe:////./pipe/docker", "", "ftp://x"])
def test_not_an_address(address: str) -> None:
    with pytest.raises(EngineError, match="not an engine address"):
        probe(address)


def test_tcp_address_with_a_bad_port() -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        probe("tcp://127.0.0.1:99999")


def test_default_prefers_a_socket_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "podman").mkdir()
    (tmp_path / "podman" / "podman.sock").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("kwdb_build.engine.address.DEFAULT_SOCKET", tmp_path / "absent.sock")
    assert default_address() == f"unix://{tmp_path}/podman/podman.sock"
    (tmp_path / "docker.sock").touch()
    assert default_address() == f"unix://{tmp_path}/docker.sock"


def test_default_names_dockers_own_socket_when_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwdb_build.engine.address.candidate_sockets", lambda _: [tmp_path / "a", tmp_path / "b"])
    assert default_address() == "unix:///var/run/docker.sock"


@pytest.mark.parametrize("api", ["1.24", "1.39", "", "weird"])
def test_too_old(api: str) -> None:
    with pytest.raises(EngineError, match="too old") as caught:
        check_api("17.05", api, address="unix:///x")
    assert "1.40" in caught.value.context


@pytest.mark.parametrize("api", ["1.40", "1.41", "1.51", "2.0"])
def test_new_enough(api: str) -> None:
    check_api("19.03", api, address="unix:///x")
