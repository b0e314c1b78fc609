"""The exported forms against real programs: the script brings the same server up, systemd takes the unit."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.server import capture, saved
from kwdb_build.server.stop import stop
from tests.integration.certs import certificates
from tests.integration.serverbox import PATIENCE_S, QUIET, surroundings
from tests.integration.test_server_life import UNUSUAL, both
from tests.integration.tool import Tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.minikwdb.instance import Instance

pytestmark = pytest.mark.engine


@pytest.fixture
def site(install_server: Callable[..., Instance]) -> Instance:
    """An installation with an unlucky name, not running."""
    return install_server(name="an 'installation' $HOME", store_name="the %n store ä", background=False)


@both
def test_the_script_brings_the_same_process_up(site: Instance, tool: Tool, tmp_path: Path, background: bool) -> None:
    site.background, site.prefix = background, UNUSUAL
    site.environment = {"KW_TOKEN": "a=b c'ä\n$HOME `id`", "EMPTY": ""}
    pid = site.start()
    before = surroundings(pid)
    script = tmp_path / "start.sh"
    answer = tool("capture", "--store", str(site.store), "--as", "shell", "-o", str(script))
    assert answer.code == 0, answer.err
    assert "$HOME `id`" not in answer.out + answer.err
    assert stat.S_IMODE(script.stat().st_mode) == 0o600
    stop(capture.capture(pid), timeout_s=PATIENCE_S, progress=QUIET)
    # Own session as for a person's shell; a background start ends when the server listens.
    with subprocess.Popen(["sh", str(script)], cwd="/", start_new_session=True) as shell:
        try:
            site.connect(PATIENCE_S).close()
            again = site.pid()
            assert again is not None
            assert surroundings(again) == before
        finally:
            site.stop()
            shell.wait(PATIENCE_S)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(install_server: Callable[..., Instance], tool: Tool, tmp_path: Path) -> None:
    site = install_server(name="an installation $HOME", store_name="the %n 'store' ä", background=False)
    site.environment = {"KW_ODD": 'quote " back \\ percent % dollar $ new\nline', "LISTEN_FDS": "1"}
    site.start()
    unit = tmp_path / "kwdb-captured.service"
    answer = tool("capture", "--store", str(site.store), "--as", "systemd", "-o", str(unit))
    assert answer.code == 0, answer.err
    assert "Not replayed: LISTEN_FDS" in answer.out
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)], capture_output=True, text=True,
        check=False,
    )
    complaints = [line for line in checked.stderr.splitlines() if unit.name in line]
    assert complaints == []
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_a_document_for_machines_is_whole_and_can_be_read_again(site: Instance, tool: Tool, tmp_path: Path) -> None:
    certificates(tmp_path / "certs")
    site.certs, site.environment = tmp_path / "certs", {"KW_SECRET_WORD": "hunter2"}
    pid = site.start()
    kept = tmp_path / "capture.json"
    answer = tool("capture", "--store", str(site.store), "--as", "json", "-o", str(kept))
    assert answer.code == 0, answer.err
    assert "hunter2" not in answer.out + answer.err
    shown = answer.json
    assert shown["deployment"]["start"]["environ"]["KW_SECRET_WORD"] == "<redacted>"
    assert shown["flags"]["given"]["certs-dir"] == [str(tmp_path / "certs")]
    assert "pid-file" in shown["flags"]["default"]
    ends = [one["ends"] - time.time() for one in shown["certificates"]]
    assert len(ends) == 3  # CA, node, root's
    assert all(86_400 < left < 3 * 86_400 for left in ends)
    program = site.root / "bin" / "kwbase"
    assert shown["sha256"][str(program)] == subprocess.run(
        ["sha256sum", str(program)], capture_output=True, text=True, check=True
    ).stdout.split()[0].removeprefix("\\")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["deployment"]["start"]["environ"]["KW_SECRET_WORD"] == "hunter2"
    assert saved.load(kept) == capture.capture(pid)
