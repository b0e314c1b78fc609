"""Whose health page it is: a secure server's is known by its certificate."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kwdb_build.errors import RefusedError, StartError
from kwdb_build.model import Deployment, Verdict
from kwdb_build.server import capture, readiness
from kwdb_build.server.start import start
from kwdb_build.sql import Login
from kwdb_build.upgrade import gate
from kwdb_build.verify import baseline
from kwdb_build.verify.request import VerifyRequest
from kwdb_build.verify.runner import run_suite
from tests.integration.certs import certificates
from tests.integration.serverbox import settled_health, stopped, wait
from tests.minikwdb.instance import Instance

pytestmark = [
    pytest.mark.engine, pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl"),
]
InstallServer = Callable[..., Instance]


@pytest.fixture
def secure(install_server: InstallServer, tmp_path: Path) -> Deployment:
    """A secure server that runs."""
    certificates(tmp_path / "certs")
    return capture.capture(install_server(certs=tmp_path / "certs", background=False).start())


def with_certificates(deployment: Deployment, directory: Path) -> Deployment:
    return dataclasses.replace(deployment, certs_dir=directory)


def shown_as_ui(deployment: Deployment, directory: Path) -> None:
    """Certificates of another authority, beside the one that the server shows, with words in its file."""
    certificates(directory)
    shown = (deployment.certs_dir / "node.crt").read_text()  # type: ignore[operator]
    (directory / "ui.crt").write_text(f"ausgestellt für: 数据库\n{shown}", encoding="utf-8")


def test_its_own_and_a_renewed_one_of_the_same_authority(secure: Deployment, tmp_path: Path) -> None:
    assert settled_health(secure).status == readiness.OK
    certificates(tmp_path / "renewed", ca=tmp_path / "certs")  # on disk, while the server still shows the old one
    assert readiness.health(with_certificates(secure, tmp_path / "renewed")).status == readiness.OK
    shown_as_ui(secure, tmp_path / "ui")
    assert readiness.health(with_certificates(secure, tmp_path / "ui")).status == readiness.OK


def test_another_authority_another_name_and_none(secure: Deployment, install_server: InstallServer, tmp_path: Path) -> None:
    certificates(tmp_path / "other ca")
    certificates(tmp_path / "other name", ca=tmp_path / "certs", host="elsewhere.invalid")
    for directory, host in (("other ca", "localhost"), ("other name", "elsewhere.invalid")):
        foreign = dataclasses.replace(
            with_certificates(secure, tmp_path / directory), sql=dataclasses.replace(secure.sql, host=host)
        )
        answer = readiness.health(foreign)
        assert answer.status == 0
        assert "is not this server's" in answer.text
        assert str(tmp_path / directory) in answer.text
        with pytest.raises(RefusedError, match=f"https://{foreign.http}/health") as caught:
            gate.require_ready(answer)
        assert "kill -HUP" in caught.value.hint
    plain = capture.capture(install_server(name="plain", background=False).start())
    assert settled_health(plain).status == readiness.OK
    assert readiness.health(dataclasses.replace(secure, http=plain.http)).status == 0


def test_a_ready_page_of_somebody_else_is_no_readiness(install_server: InstallServer, tmp_path: Path) -> None:
    """Our server is up and cannot have its port; the page that is asked in its place is ready, and another's."""
    for name in ("certs", "theirs"):
        certificates(tmp_path / name)
    deployment, _ = stopped(install_server(certs=tmp_path / "certs", background=False))
    theirs = capture.capture(install_server(name="theirs", certs=tmp_path / "theirs", background=False).start())
    assert settled_health(theirs).status == readiness.OK
    started = start(deployment.start, log_dir=tmp_path / "run")
    with pytest.raises(StartError) as caught:
        wait(dataclasses.replace(deployment, http=theirs.http), started, timeout_s=2)
    assert "gave up after 2 s, still waiting until the server is ready" in caught.value.message
    assert "another server has that port" in caught.value.context


def test_the_suite_knows_the_page_as_readiness_does(secure: Deployment, tmp_path: Path) -> None:
    """A page with a ui.crt and one by plain http were ready before the stop: neither fails the new version."""
    login = Login(address=secure.sql, certs_dir=secure.certs_dir)
    baseline.save(baseline.record_baseline(login), tmp_path / "baseline.json")
    shown_as_ui(secure, tmp_path / "ui")
    certificates(tmp_path / "foreign")
    plain = dataclasses.replace(secure, start=dataclasses.replace(
        secure.start, argv=(*secure.start.argv, "--unencrypted-localhost-http")
    ))
    for deployment, verdict in (
        (with_certificates(secure, tmp_path / "ui"), Verdict.OK), (plain, Verdict.OK),
        (with_certificates(secure, tmp_path / "foreign"), Verdict.FAIL),
    ):
        assert (readiness.health(deployment).status == readiness.OK) == (verdict is Verdict.OK)
        result = run_suite(VerifyRequest(
            login=login, baseline=tmp_path / "baseline.json", expected_version=str(secure.version), http=secure.http,
            page_certificates=readiness.page_certificates(deployment), settle_s=0, retry_s=1,
        ), run_dir=tmp_path / "run", timeout_s=60)
        pages = {check.verdict for check in result.checks if check.name.startswith("Health by HTTP")}
        assert pages == {verdict}, result.log.read_text()
