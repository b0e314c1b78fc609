"""Real keys to sign with, made by the real programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kwdb_build.build import signing
from kwdb_build.build.signing import Signer, Trust

KINDS = ("ssh", "gpg", "minisign")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key pair: how to sign with it, and the trust that accepts it."""

    signer: Signer
    trust: Trust


def run(*argv: str | Path, **environment: str) -> str:
    return subprocess.run(
        [str(word) for word in argv], check=True, text=True, capture_output=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    ).stdout


def make_key(kind: str, place: Path, name: str, *, passphrase: str = "") -> Key:
    if shutil.which(signing.PROGRAMS[kind]) is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {signing.PROGRAMS[kind]}")
        pytest.skip(f"needs {signing.PROGRAMS[kind]}")
    place.mkdir(exist_ok=True)
    secret = place / name
    if kind == "ssh":
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", secret)
        allowed = place / f"{name}.allowed"
        allowed.write_text(f"{name}@example.org {secret.with_suffix('.pub').read_text()}")
        return Key(signer=Signer(kind=kind, key=str(secret)), trust=Trust(allowed_signers=allowed))
    if kind == "gpg":
        who = f"{name}@example.org"
        run("gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", passphrase, "--quick-gen-key",
            f"{name} <{who}>", "ed25519", "sign", "never")
        ring = place / f"{name}.asc"
        ring.write_text(run("gpg", "--armor", "--export", who))
        return Key(signer=Signer(kind=kind, key=who), trust=Trust(keyring=ring))
    public = place / f"{name}.pub"
    run("minisign", "-G", "-W", "-p", public, "-s", secret)
    return Key(signer=Signer(kind=kind, key=str(secret)), trust=Trust(pubkey=str(public)))


@contextlib.contextmanager
def own_gnupg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gpg without keys; below /tmp, as the path of its agent's socket must be short. No ssh agent."""
    with tempfile.TemporaryDirectory(prefix="kb-gpg-", dir="/tmp", ignore_cleanup_errors=True) as home:
        monkeypatch.setenv("GNUPGHOME", home)
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield
        if shutil.which("gpgconf"):
            subprocess.run(["gpgconf", "--kill", "all"], check=False)
