from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build.model import Verdict, to_json
from kwdb_build.verify import logs

PLACE = Path("/store/logs/kwbase.log")


@pytest.mark.parametrize(
    "line",
    [
        "panic: failed create tsEngine, err: open TSEngineImpl Error!",
        "fatal error: unexpected signal during runtime execution",
        "F261122 08:42:37.955995 1 server/node.go:390  node is broken",
        "E261122 08:42:37.9 12 util/log/crash.go:82  [n1] panic: runtime error: index out of range [3] with length 2",
        "2026-11-22 ERROR ts_version.cpp Unknown version update type: 11",
        "recover vgroup version failed",
        "E261122 08:42:37.9 12 sql/x.go:1  [n1] Invalid physical plan",
        "[signal SIGSEGV: segmentation violation code=0x1 addr=0x0]",
        "log: exiting because of error: write /x/logs/kwbase.log: no space left on device",
    ],
)
def test_lines_of_servers_that_died_are_found(line: str) -> None:
    found = logs.find(f"I261122 one\nI261122 two\n{line}\nI261122 three\n", PLACE)
    assert [(item.verdict, item.line) for item in found] == [(Verdict.FAIL, 3)]
    assert line in found[0].text
    assert "I261122 two" in found[0].text


@pytest.mark.parametrize(
    "line",
    [
        "I261122 08:42:37.9 1 server/server.go:1  node startup completed:",
        "I261122 08:42:37.9 9 sql/exec.go:1  [n1] INSERT INTO notes VALUES ('do not panic: it is fine')",
        "W261122 08:42:37.9 1 cli/start.go:1  Using the default setting for --cache (128 MiB).",
        'E261122 08:42:37.9 7 sql/conn.go:1  [n1] syntax error at or near "tag"',
    ],
)
def test_ordinary_lines_are_not(line: str) -> None:
    assert logs.find(line, PLACE) == []


def test_a_stack_is_one_finding() -> None:
    text = "panic: a\nfatal error: b\n[signal SIGSEGV: c]\ngoroutine 1\n"
    assert len(logs.find(text, PLACE)) == 1


def test_only_what_was_written_since_the_mark_counts(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    old = directory / "kwbase.host.1.log"
    old.write_text("panic: long ago\n")
    (directory / "kwbase.log").symlink_to(old.name)
    (directory / "kwbase-rocksdb.1.log").write_text("panic: not ours to read\n")
    single = tmp_path / "stdout"
    single.write_text("panic: before\n")
    mark = logs.from_json(to_json(logs.mark_logs([directory, tmp_path / "none"], [single])))
    assert logs.scan_logs(mark)[0] == []
    with old.open("a") as stream:
        stream.write("I261122 fine\n")
    (directory / "TsEngine.2.log").write_text("Unknown version update type: 11\n")
    single.write_text("panic: x\n")  # shorter than before: truncated, read whole
    findings, read = logs.scan_logs(mark)
    assert {item.path.name for item in findings} == {"TsEngine.2.log", "stdout"}
    assert {path.name for path in read} == {"kwbase.host.1.log", "TsEngine.2.log", "stdout"}
