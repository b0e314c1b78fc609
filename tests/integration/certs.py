"""Certificates for secure servers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def certificates(directory: Path, *, host: str = "localhost", ca: Path | None = None) -> None:
    """A CA (or the one of another such directory) and certificates for node and root, as `kwbase cert` lays them out."""
    directory.mkdir(mode=0o700)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    if ca is None:
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2",
                "-subj", "/CN=test CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    else:
        for name in ("ca.key", "ca.crt"):
            shutil.copy(ca / name, directory)
    for name, subject, extra in (
        ("node", "/CN=node", f"subjectAltName=DNS:{host}"), ("client.root", "/CN=root", "extendedKeyUsage=clientAuth"),
    ):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", "request", "-subj", subject)
        (directory / "extensions").write_text(extra + "\n")
        openssl("x509", "-req", "-in", "request", "-CA", "ca.crt", "-CAkey", "ca.key", "-out", f"{name}.crt",
                "-days", "2", "-extfile", "extensions")
        (directory / f"{name}.key").chmod(0o600)
