"""Certificates made by openssl, and what is no certificate."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kwdb_build.host.certificates import check_certificates, validity
from kwdb_build.model import Verdict

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")


def make(directory: Path, name: str, *, days: int, key: str = "rsa:2048") -> None:
    kind = ["-newkey", key] if key.startswith("rsa") else ["-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{key}"]
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", *kind, "-keyout", directory / f"{name}.key", "-out",
         directory / f"{name}.crt", "-days", str(days), "-subj", f"/CN={name}"], check=True, capture_output=True,
    )


@needs_openssl
def test_expiry_of_real_certificates(tmp_path: Path) -> None:
    make(tmp_path, "ca", days=36500)  # beyond 2049: another form of time
    make(tmp_path, "node", days=100, key="prime256v1")
    now = datetime.now(UTC)
    (begin, end), = validity((tmp_path / "node.crt").read_bytes())
    assert abs(begin - now) < timedelta(minutes=5)
    assert end - begin == timedelta(days=100)
    rows = {row.name: row for row in check_certificates(tmp_path, now)}
    assert {name: row.verdict for name, row in rows.items()} == {
        "certificate ca.crt": Verdict.OK, "certificate node.crt": Verdict.OK
    }
    assert rows["certificate node.crt"].found == f"until {end:%Y-%m-%d}"
    later = {row.name: row for row in check_certificates(tmp_path, now + timedelta(days=90))}
    assert (later["certificate node.crt"].verdict, later["certificate ca.crt"].verdict) == (Verdict.WARN, Verdict.OK)
    over = {row.name: row for row in check_certificates(tmp_path, now + timedelta(days=101))}
    assert over["certificate node.crt"].verdict is Verdict.FAIL
    assert "cert create-node" in over["certificate node.crt"].fix


@needs_openssl
def test_a_chain_ends_with_its_first_end(tmp_path: Path) -> None:
    make(tmp_path, "ca", days=1000)
    make(tmp_path, "node", days=10)
    both = (tmp_path / "node.crt").read_bytes() + (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "node.crt").write_bytes(both)
    rows = {row.name: row for row in check_certificates(tmp_path, datetime.now(UTC))}
    assert rows["certificate node.crt"].verdict is Verdict.WARN


@needs_openssl
def test_keys_that_others_may_read(tmp_path: Path) -> None:
    make(tmp_path, "node", days=100)
    (tmp_path / "node.key").chmod(0o640)
    row = check_certificates(tmp_path, datetime.now(UTC))[-1]
    assert (row.verdict, row.fix) == (Verdict.FAIL, f"chmod 0600 {tmp_path}/node.key")
    (tmp_path / "node.key").chmod(0o600)
    assert len(check_certificates(tmp_path, datetime.now(UTC))) == 1


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                                     b"-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n",
                                     b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"])
def test_what_is_none_is_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.crt").write_bytes(content)
    row, = check_certificates(tmp_path, datetime.now(UTC))
    assert row.verdict is Verdict.UNKNOWN


def test_no_certificates_at_all(tmp_path: Path) -> None:
    row, = check_certificates(tmp_path, datetime.now(UTC))
    assert row.verdict is Verdict.UNKNOWN
