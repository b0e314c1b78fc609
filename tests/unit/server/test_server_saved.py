"""A captured deployment survives the disk."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kwdb_build.errors import UsageError
from kwdb_build.model import Address, Capabilities, Deployment, StartCommand, Store, Version
from kwdb_build.server import saved

if TYPE_CHECKING:
    from collections.abc import Mapping


def command(argv: tuple[str, ...], environ: Mapping[str, str], cwd: Path = Path("/")) -> StartCommand:
    return StartCommand(
        argv=argv, background=False, cwd=cwd, executable=Path(sys.executable), environ=dict(environ),
        dropped={"NOTIFY_SOCKET": "gone"}, uid=os.getuid(), gid=os.getgid(), groups=(0, 4), limits={"nofile": (256, -1)},
        oom_score_adj=-5, nice=3, stdout="/dev/null", stderr="pipe:[4]", umask=0o027,
        capabilities=Capabilities(bounding=7, ambient=1, inheritable=1), ionice=(2, 6), scheduling=(3, 0),
        affinity=(0, 2), cgroup=("0::/kw",),
    )


def deployment(start: StartCommand) -> Deployment:
    return Deployment(
        pid=4, started_at=1.5, start=start,
        stores=(Store(path=Path("/d ä"), targets=(Path("/t"),)), Store(path=Path("/ts"), kind="ts-store")),
        sql=Address(host="::1", port=26257), http=Address(host="127.0.0.1", port=8080), secure=True,
        certs_dir=Path("/certs"), libraries={"libcommon.so": Path("/l/libcommon.so")}, version=Version.parse("V3.1.0"),
        supervisor="systemd:kw.service",
    )


_TEXT = st.binary(max_size=15).filter(lambda data: b"\0" not in data).map(os.fsdecode)
_NAME = st.from_regex(r"[A-Z][A-Z_]{0,8}", fullmatch=True).filter(lambda name: name not in {"LC_CTYPE", "PYTHONHOME"})
_TEMPORARY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_TEMPORARY
@given(arguments=st.lists(_TEXT, max_size=4), environ=st.dictionaries(_NAME, _TEXT, max_size=4))
def test_round_trip_through_the_disk(tmp_path: Path, arguments: list[str], environ: dict[str, str]) -> None:
    before = deployment(command(("./kwbase", *arguments), environ))
    saved.save(before, tmp_path / "c.json")
    assert saved.load(tmp_path / "c.json") == before


def test_without_optional_parts(tmp_path: Path) -> None:
    before = dataclasses.replace(deployment(command(("k",), {})), http=None, certs_dir=None, secure=False)
    saved.save(before, tmp_path / "c.json")
    assert saved.load(tmp_path / "c.json") == before


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        saved.save(deployment(command(("k",), {"PASSWORD": "x"})), tmp_path / "c.json")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "c.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 9, "deployment": {}}', '{"format": 1, "deployment": {}}'])
def test_what_is_no_capture(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UsageError):
        saved.load(tmp_path / "c.json")
    with pytest.raises(UsageError):
        saved.load(tmp_path / "none.json")
