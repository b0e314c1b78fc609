"""The words on a drain."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kwdb_build.server import drain, logs, proc


@pytest.mark.parametrize(("count", "words"), [
    (None, ""), (0, "no client connections open"), (1, "1 client connection open"), (3, "3 client connections open"),
])
def test_counts(count: int | None, words: str) -> None:
    assert drain.count_in_words(count) == words


def test_the_last_line_about_the_drain() -> None:
    text = (
        "I261122 08:42:37.955995 1 cli/start.go:700  [n1] initiating graceful shutdown of server\n"
        "I261122 08:42:38.955995 77 server/drain.go:12  draining SQL clients\n"
        "I261122 08:42:38.955999 77 gossip/gossip.go:12  something else\n"
    )
    assert drain.last_line(text) == "draining SQL clients"
    assert drain.last_line("initiating graceful shutdown of server\n") == "initiating graceful shutdown of server"
    assert drain.last_line("nothing\n") == ""


def test_connections_are_counted_by_their_own_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            with accepted:
                assert drain.connections(os.getpid(), port) == 1
    assert drain.connections(2**22 + 1, port) is None


@pytest.mark.parametrize(("text", "begun"), [(None, None), ("serving\n", False), (f"I26 {logs.DRAINING}\n", True)])
def test_its_own_log_tells_whether_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, begun: bool | None
) -> None:
    monkeypatch.setattr(drain.capture, "log_directory", lambda _: tmp_path)
    (tmp_path / f"kwbase.host.{os.getpid() + 1:06}.log").write_text(logs.DRAINING)
    if text is not None:
        (tmp_path / f"kwbase.host.{os.getpid():06}.log").write_text(text)
    server: Any = SimpleNamespace(pid=os.getpid(), started_at=proc.start_time(os.getpid()))
    assert drain.begun(server) is begun
