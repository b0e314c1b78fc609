"""A compiler cache behind a web server: what ccache asks through the socket of a build, and how that server fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.build.remote import shared
from kwdb_build.errors import UsageError
from tests.integration.certs import certificates
from tests.integration.redisbox import KEY, resp, through
from tests.integration.webbox import Web, running_web
from tests.notes import Notes
from tests.ports import free_port

ENTRY = "/ccache/" + KEY[7:9] + "/" + KEY[9:]
LARGE = "v" * 3_000_000 + "\r\n" + resp("FLUSHALL").decode()


@pytest.fixture
def web() -> Iterator[Web]:
    with running_web() as found:
        yield found


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.mark.parametrize("chunked", [False, True])
def test_what_one_build_keeps_the_next_one_gets(web: Web, notes: Notes, tmp_path: Path, chunked: bool) -> None:
    web.chunked = chunked
    with shared(f"{web.url}/ccache/", None, scratch=tmp_path, progress=notes):
        assert through(tmp_path, resp("EXISTS", KEY) + resp("GET", KEY)) == b":0\r\n$-1\r\n"
        assert through(tmp_path, resp("SET", KEY, LARGE) + resp("EXISTS", KEY)) == b"+OK\r\n:1\r\n"
        assert web.held == {ENTRY: LARGE.encode()}, "where ccache itself would look for it"
        whole = b"$%d\r\n%s\r\n" % (len(LARGE), LARGE.encode())
        assert through(tmp_path, resp("get", KEY) + resp("GET", KEY)) == whole * 2
        assert through(tmp_path, resp("DEL", KEY) + resp("DEL", KEY)) == b":1\r\n:0\r\n"
    assert (web.held, notes.notes, web.logins) == ({}, [], {""})


@pytest.mark.parametrize(
    ("user", "wanted"), [("", "Bearer pass word"), ("me@", "Basic bWU6cGFzcyB3b3Jk")], ids=["token", "name"]
)
def test_a_password_goes_along_and_is_never_said(
    web: Web, notes: Notes, tmp_path: Path, user: str, wanted: str
) -> None:
    file = tmp_path / "password"
    file.write_text("pass word\n")
    with shared(web.url.replace("//", f"//{user}"), file, scratch=tmp_path, progress=notes):
        assert through(tmp_path, resp("EXISTS", KEY)) == b":0\r\n"
        assert web.logins == {wanted}
        web.status = 401
        assert through(tmp_path, resp("GET", KEY)) == b""
    [note] = notes.notes
    assert note.startswith(f"the shared cache at {web.url[7:]} does not take the password of cache_remote_password_file")
    assert note.endswith("(HTTP 401): building without it")


@pytest.mark.parametrize("status", [302, 400, 403, 500, 503])
def test_a_server_that_is_no_cache_is_asked_once(web: Web, notes: Notes, tmp_path: Path, status: int) -> None:
    web.status = status
    with shared(web.url, None, scratch=tmp_path, progress=notes):
        for _ in range(3):
            assert through(tmp_path, resp("GET", KEY)) == b""
    assert len(web.asked) == len(notes.notes) == 1
    assert f"(HTTP {status}): building without it" in notes.notes[0]


def test_a_cache_that_may_only_be_read_is_read(web: Web, notes: Notes, tmp_path: Path) -> None:
    web.held[f"/{KEY[7:9]}/{KEY[9:]}"] = b"entry"
    web.read_only = True
    with shared(web.url, None, scratch=tmp_path, progress=notes):
        for _ in range(2):
            assert through(tmp_path, resp("SET", KEY, LARGE) + resp("GET", KEY)) == b"-ERR not kept\r\n$5\r\nentry\r\n"
    [note] = notes.notes
    assert "keeps nothing of this build (HTTP 405): it is only read" in note


def test_a_server_that_dies_in_the_middle_gives_no_half_entries(web: Web, notes: Notes, tmp_path: Path) -> None:
    with shared(web.url, None, scratch=tmp_path, progress=notes):
        assert through(tmp_path, resp("SET", KEY, LARGE)) == b"+OK\r\n"
        web.cut = True
        answer = through(tmp_path, resp("GET", KEY))
        assert answer.startswith(b"$%d\r\n" % len(LARGE))
        assert len(answer) < len(LARGE)
        assert through(tmp_path, resp("GET", KEY)) == b"", "asked no more"
    assert len(notes.notes) == 1
    assert "does not answer" in notes.notes[0]


def test_half_an_entry_is_not_kept(web: Web, notes: Notes, tmp_path: Path) -> None:
    begun = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$9\r\ncut" % (len(KEY), KEY.encode())
    with shared(web.url, None, scratch=tmp_path, progress=notes):
        assert through(tmp_path, begun) == b""
        assert through(tmp_path, resp("GET", KEY)) == b"$-1\r\n", "a compiler that was stopped spoils it for no other"
    assert (web.held, notes.notes) == ({}, [])


@pytest.mark.parametrize("data", [
    resp("FLUSHALL"), resp("GET", "session:root"), resp("GET", "ccache:../../etc/passwd"), resp("GET", "ccache:a b"),
    b"GET / HTTP/1.1\r\n\r\n", resp("SET", KEY, "x", "EX"),
])
def test_nothing_else_reaches_the_server(web: Web, notes: Notes, tmp_path: Path, data: bytes) -> None:
    with shared(web.url, None, scratch=tmp_path, progress=notes):
        assert through(tmp_path, data) == b""
    assert web.asked == []
    assert "refused" in notes.notes[0]


def test_nobody_answers(notes: Notes, tmp_path: Path) -> None:
    with shared(f"http://127.0.0.1:{free_port()}", None, scratch=tmp_path, progress=notes):
        assert through(tmp_path, resp("GET", KEY)) == b""
    assert "does not answer" in notes.notes[0]


def test_only_a_server_with_a_certificate_that_counts_is_asked(notes: Notes, tmp_path: Path) -> None:
    certificates(tmp_path / "certs")
    with running_web(tmp_path / "certs") as web:
        for name, authorities, answer in (("one", tmp_path / "certs/ca.crt", b":0\r\n"), ("two", None, b"")):
            (tmp_path / name).mkdir()
            with shared(web.url, None, scratch=tmp_path / name, progress=notes, authorities=authorities):
                assert through(tmp_path / name, resp("EXISTS", KEY)) == answer
    assert len(notes.notes) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in notes.notes[0]


def test_a_password_file_that_is_none(web: Web, notes: Notes, tmp_path: Path) -> None:
    two_lines = tmp_path / "lines"
    two_lines.write_text("one\nInjected: two")
    for file in (tmp_path / "absent", tmp_path, two_lines):
        with pytest.raises(UsageError, match="cache_remote_password_file") as caught, shared(
            web.url, file, scratch=tmp_path, progress=notes
        ):
            pytest.fail("it was used")
        assert caught.value.hint
        assert "Injected" not in caught.value.message + caught.value.context
