"""The address to dial: what the process listens on decides, flags and files only propose."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import ServerNotFoundError, StartError
from kwdb_build.model import Address
from kwdb_build.server import address, startflags
from kwdb_build.server.startflags import HostPort
from tests.ports import free_port
from tests.unit.server.test_server_validate import server

if TYPE_CHECKING:
    from pathlib import Path

EVERY = "0.0.0.0"  # noqa: S104 compared, not bound


def flags(*words: str) -> startflags.StartFlags:
    return startflags.parse(("kwbase", "start", *words), cwd="/", environ={})


def sockets(*texts: str) -> list[HostPort]:
    return [startflags.parse_host_port(text, 0) for text in texts]


def store(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / f"kwbase.{name}-addr").write_text(text)
    return path


def test_the_stores_files_win_where_they_are_true(tmp_path: Path) -> None:
    here = store(tmp_path, sql="127.0.0.1:40001", http="127.0.0.1:40002")
    found = address.resolve(flags("--listen-addr=127.0.0.1:0"), [here], sockets("127.0.0.1:40001", "127.0.0.1:40002"))
    assert found == (Address(host="127.0.0.1", port=40001), Address(host="127.0.0.1", port=40002))


def test_files_left_by_an_earlier_run_are_not_believed(tmp_path: Path) -> None:
    here = store(tmp_path, sql="127.0.0.1:40001", http="garbage")
    found = address.resolve(
        flags("--listen-addr=127.0.0.1:26000", "--http-addr=:8081"), [here], sockets("127.0.0.1:26000", "127.0.0.1:8081")
    )
    assert found == (Address(host="127.0.0.1", port=26000), Address(host="127.0.0.1", port=8081))


def test_no_http_is_no_error_but_no_sql_is(tmp_path: Path) -> None:
    assert address.resolve(flags(), [tmp_path], sockets("[::]:26257"))[1] is None
    with pytest.raises(StartError) as caught:
        address.resolve(flags(), [tmp_path], sockets("0.0.0.0:8080"))
    assert "26257" in caught.value.message
    assert "0.0.0.0:8080" in caught.value.context


@pytest.mark.parametrize(("wanted", "bound", "host"), [
    ("", ["::"], "127.0.0.1"), (EVERY, [EVERY], "127.0.0.1"), ("db1.example", ["::"], "127.0.0.1"),
    ("10.0.0.5", ["10.0.0.5"], "10.0.0.5"), ("localhost", ["127.0.0.1"], "127.0.0.1"), ("::1", ["::1"], "::1"),
    ("", ["::ffff:10.0.0.5"], "10.0.0.5"),
])
def test_hosts(wanted: str, bound: list[str], host: str) -> None:
    assert address.dialable(wanted, bound) == host


def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = Address(host="127.0.0.1", port=taken.getsockname()[1])
        assert not address.port_free(where)
        assert where.port in {one.port for one in address.listening(os.getpid())}
        with pytest.raises(StartError) as caught:
            address.require_ports_free([None, where])
        assert str(where.port) in caught.value.message
        assert f"pid {os.getpid()}" in caught.value.context
    assert address.port_free(where)
    address.require_ports_free([where])


@pytest.mark.parametrize("host", ["192.0.2.1", "not-there.invalid"])  # RFC 5737 and 6761: no machine's
def test_a_host_that_cannot_be_bound_is_nobody_elses(host: str) -> None:
    where = Address(host=host, port=1)
    assert address.port_free(where)
    address.require_ports_free([where])


def test_unix_sockets_are_found_whatever_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = ("plain", "with  two spaces\u00e9", "sub/../relative")
    (tmp_path / "sub").mkdir()
    with contextlib.ExitStack() as stack:
        for place in (*places, "\0abstract"):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(place)
            one.listen()
        found = address.unix_sockets(os.getpid())
        assert {tmp_path / "plain", tmp_path / "with  two spaces\u00e9", tmp_path / "relative"} <= set(found)
    assert tmp_path / "plain" not in address.unix_sockets(os.getpid()), "its file is there, and it is closed"
    with pytest.raises(ServerNotFoundError):
        address.unix_sockets(2**22 + 1)


def test_a_stale_socket_whose_absolute_path_is_too_long_for_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("long" * 30)
    (directory / "sockets").mkdir(parents=True)
    deployment = server(tmp_path, "--socket-dir=sockets", "--listen-addr=127.0.0.1:26257")
    deployment = dataclasses.replace(
        deployment, start=dataclasses.replace(deployment.start, cwd=directory), http=None,
        sql=Address(host="127.0.0.1", port=free_port()),
    )
    place = directory / "sockets" / ".s.PGSQL.26257"
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind("sockets/.s.PGSQL.26257")  # as kwbase does from there
        theirs.listen()
        with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as one:
            one.connect(str(place))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(StartError, match="somebody else listens"):
            address.clear_the_way(deployment)
        assert place.is_socket()
    address.clear_the_way(deployment)
    assert not place.exists()


def test_only_a_socket_itself_is_removed(tmp_path: Path) -> None:
    """A stale socket goes; a link to one stays, and so does what it leads to."""
    place, target = tmp_path / "place", tmp_path / "target"
    deployment = dataclasses.replace(
        server(tmp_path, f"--socket={place}"), sql=Address(host="127.0.0.1", port=free_port()), http=None
    )
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(target))
    place.symlink_to(target)
    address.clear_the_way(deployment)
    assert place.is_symlink()
    assert target.is_socket()
    place.unlink()
    target.rename(place)
    address.clear_the_way(deployment)
    assert not place.exists()
