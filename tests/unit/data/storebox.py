"""Making and comparing stores: in KWDB's shape, with links, holes, owners and names that trip up copies."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def fill_store(root: Path, outside: Path) -> None:
    (root / "tsdb/vg_001/db00080_+0001794528000").mkdir(parents=True)
    (root / "tsdb/schema/80/tag").mkdir(parents=True)
    (root / "tsdb/temp_db_").mkdir()
    (root / "auxiliary").mkdir()
    (root / "logs").mkdir()
    (root / "kwbase-temp306773").mkdir()
    files = {
        "CURRENT": b"MANIFEST-000012\n", "IDENTITY": b"abc", "KWBASEDB_VERSION": b'{"Version":1}', "LOCK": b"",
        "000013.log": os.urandom(70_000), "000016.sst": os.urandom(200_000), "MANIFEST-000012": os.urandom(500),
        "kwbase.start_mode": b"start-single-node", "temp-dirs-record.txt": b"somewhere",
        "logs/kwbase.host.log": b"I261122 started", "kwbase-temp306773/CURRENT": b"spill",
        "tsdb/vg_001/CURRENT": b"TSVERSION-1", "tsdb/vg_001/TSVERSION-1": os.urandom(64),
        "tsdb/vg_001/db00080_+0001794528000/blk": os.urandom(1 << 20),
        "tsdb/schema/80/tag/80.tag.mt": os.urandom(8192), "tsdb/ö name with 空格": b"x", "empty": b"",
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
        (root / name).chmod(0o640)
    with (root / "tsdb/vg_001/sparse").open("wb") as stream:
        stream.truncate(8 << 20)
        stream.seek(3 << 20)
        stream.write(b"row")
    (root / "tsdb" / os.fsdecode(b"bad-\xff-name")).write_bytes(b"not utf-8")
    outside.mkdir(parents=True)
    (outside / "inner").mkdir()
    (outside / "inner" / "blk").write_bytes(os.urandom(300_000))
    (root / "tsdb/vg_002").symlink_to(outside)
    (root / "tsdb/alias").symlink_to("vg_001")
    (root / "tsdb/dangling").symlink_to("nowhere")
    (root / "logs/kwbase.log").symlink_to("kwbase.host.log")
    if os.geteuid() == 0:
        os.chown(root / "tsdb/vg_001/TSVERSION-1", 4242, 4243)
    (root / "tsdb/schema").chmod(0o2750)


def snapshot(root: Path, *, skip: tuple[str, ...] = ("logs", "LOCK", "temp-dirs-record.txt")) -> dict[str, object]:
    """Everything that must be equal, written apart from the code under test."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        top = path.relative_to(root).parts[0]
        if top in skip or top.startswith("kwbase-temp"):
            continue
        info = path.lstat()
        what: object = "dir"
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            what = (path.read_bytes(), info.st_mtime_ns)
        mode = 0 if path.is_symlink() else info.st_mode
        found[str(path.relative_to(root))] = (what, mode, info.st_uid, info.st_gid)
    return found


LOCK_SCRIPT = (
    "import fcntl, sys\nf = open(sys.argv[1], 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\n"
    "sys.stdin.read()"
)


@contextlib.contextmanager
def lock_held(root: Path) -> Iterator[int]:
    """Another process holds the store's LOCK, as a running server does; gives its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_SCRIPT, str(root / "LOCK")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child.pid
        child.communicate("")
