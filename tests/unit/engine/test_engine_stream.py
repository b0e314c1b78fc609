"""Output in any pieces gives the same lines; the builder's events give progress and errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.engine.stream import BuildEvents, LineSplitter
from kwdb_build.errors import EngineError

LOG = Path("/var/log/x")


@given(st.lists(st.sampled_from([b"a", b"bc", "ü".encode(), b"\n", b"\r", b"\r\n", b" "]), max_size=40), st.data())
def test_pieces_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    splitter, lines = LineSplitter(), []
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        lines += splitter.feed(whole[begin:end])
    lines += splitter.flush()
    expected = re.split("\r\n|\n|\r", whole.decode())
    assert lines == (expected if expected[-1] else expected[:-1])


def test_progress_bars_are_lines_and_bad_bytes_are_kept_visible() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"10%\r20%\rdone\n\xff\n") == ["10%", "20%", "done", "\ufffd"]
    assert splitter.flush() == []


def test_good_build() -> None:
    events = BuildEvents()
    assert events.feed({"stream": "Step 1/2 : FROM x"}) == ["Step 1/2 : FROM x"]
    assert events.feed({"stream": "\n"}) == []
    assert events.feed({"aux": {"ID": "sha256:abc"}}) == []
    assert events.finish(tag="t", log=LOG) == "sha256:abc"


def test_error_inside_the_stream_names_instruction_and_last_lines() -> None:
    events = BuildEvents()
    events.feed({"stream": "Step 1/2 : FROM x\n"})
    events.feed({"stream": "from an earlier step\n"})
    events.feed({"stream": "Step 2/2 : RUN make\n"})
    events.feed({"stream": "cc: no such file\n"})
    events.feed({"error": "short", "errorDetail": {"code": 2, "message": "returned a non-zero code: 2"}})
    with pytest.raises(EngineError) as caught:
        events.finish(tag="kwdb-build/x:1", log=LOG)
    assert caught.value.context.splitlines() == [
        "Step 2/2 : RUN make", "cc: no such file", "returned a non-zero code: 2"
    ]
    assert caught.value.log == LOG


def test_error_without_detail() -> None:
    events = BuildEvents()
    events.feed({"error": "pull access denied"})
    with pytest.raises(EngineError, match="failed") as caught:
        events.finish(tag="t", log=LOG)
    assert "pull access denied" in caught.value.context


def test_stream_that_just_ends_is_an_error() -> None:
    events = BuildEvents()
    events.feed({"stream": "Step 1/2 : FROM x\n"})
    with pytest.raises(EngineError, match="without a result"):
        events.finish(tag="t", log=LOG)
