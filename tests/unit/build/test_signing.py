"""Signatures with real keys and the real programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.build import signing
from kwdb_build.build.inspection import SignedAlreadyError, inspect, require, sign_build
from kwdb_build.build.signing import Signer, Trust
from kwdb_build.build.store import PROVENANCE, SIGNATURES, ArtifactStore
from kwdb_build.errors import ArtifactError, DependencyError, ExitCode, SignatureError, UsageError
from kwdb_build.model import Artifact, Verdict
from tests.unit.build.artifactbox import add_build, spoil
from tests.unit.build.keys import KINDS, make_key, own_gnupg, run

PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def gnupg_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with own_gnupg(monkeypatch):
        yield


def verdict(artifact: Artifact, trust: Trust) -> tuple[Verdict, str]:
    row = next(row for row in inspect(artifact, trust) if row.name == "signature")
    return row.verdict, row.found


@pytest.mark.parametrize("kind", KINDS)
def test_signed_and_verified(store: ArtifactStore, artifact: Artifact, tmp_path: Path, kind: str) -> None:
    key, stranger = make_key(kind, tmp_path / "keys", "builder"), make_key(kind, tmp_path / "keys", "stranger")
    assert verdict(artifact, key.trust)[0] == Verdict.FAIL  # not signed at all, and a signature was asked for
    path = sign_build(store, artifact, key.signer)
    assert path == artifact.path / SIGNATURES[kind]
    store.verify(artifact)
    said, who = verdict(artifact, key.trust)
    assert said == Verdict.OK
    assert who.startswith(f"{kind}: ")
    if kind != "minisign":
        assert "builder@example.org" in who
    require(artifact, inspect(artifact, key.trust))

    said, why = verdict(artifact, stranger.trust)
    assert said == Verdict.FAIL
    assert {"ssh": "not among the allowed signers", "gpg": "not in", "minisign": "another one"}[kind] in why
    with pytest.raises(SignatureError):
        require(artifact, inspect(artifact, stranger.trust))


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_does_not_fit_a_changed_provenance(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, kind: str
) -> None:
    key = make_key(kind, tmp_path / "keys", "builder")
    sign_build(store, artifact, key.signer)
    document = artifact.path / PROVENANCE
    spoil(document, document.read_bytes().replace(b"20.10.24", b"20.10.25"))  # still a valid statement
    said, why = verdict(artifact, key.trust)
    assert said == Verdict.FAIL
    assert "does not fit the provenance" in why


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_no_signature(store: ArtifactStore, artifact: Artifact, tmp_path: Path, kind: str) -> None:
    key = make_key(kind, tmp_path / "keys", "builder")
    store.attach(artifact, SIGNATURES[kind], b"nothing of that kind")
    assert verdict(artifact, key.trust)[0] == Verdict.FAIL


def test_one_kind_does_not_stand_for_another(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    ssh, gpg = make_key("ssh", tmp_path / "keys", "one"), make_key("gpg", tmp_path / "keys", "two")
    sign_build(store, artifact, ssh.signer)
    said, why = verdict(artifact, gpg.trust)
    assert said == Verdict.FAIL
    assert "no gpg signature" in why
    sign_build(store, artifact, gpg.signer)
    both = Trust(allowed_signers=ssh.trust.allowed_signers, keyring=gpg.trust.keyring)
    assert verdict(artifact, both)[0] == Verdict.OK


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_signature_does_not_replace_the_first_unasked(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, kind: str
) -> None:
    first, second = make_key(kind, tmp_path / "keys", "first"), make_key(kind, tmp_path / "keys", "second")
    path = sign_build(store, artifact, first.signer)
    made = path.read_bytes()
    with pytest.raises(SignedAlreadyError, match=f"of the kind {kind} already") as caught:
        sign_build(store, artifact, second.signer)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "--replace" in caught.value.hint
    assert path.read_bytes() == made
    assert verdict(artifact, first.trust)[0] == Verdict.OK

    sign_build(store, artifact, second.signer, replace=True)
    assert verdict(artifact, first.trust)[0] == Verdict.FAIL
    assert verdict(artifact, second.trust)[0] == Verdict.OK


def test_who_signs_meanwhile_is_not_replaced(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = make_key("ssh", tmp_path / "keys", "slow"), make_key("ssh", tmp_path / "keys", "quick")
    real = signing.sign

    def while_another_signs(signer: Signer, document: Path) -> bytes:
        monkeypatch.setattr(signing, "sign", real)
        sign_build(store, artifact, quick.signer)
        return real(signer, document)

    monkeypatch.setattr(signing, "sign", while_another_signs)
    with pytest.raises(SignedAlreadyError):
        sign_build(store, artifact, slow.signer)
    assert verdict(artifact, quick.trust)[0] == Verdict.OK


@pytest.mark.parametrize("kind", ["ssh", "gpg"])  # a minisign key with a password takes a GiB of memory, by design
def test_a_passphrase_comes_from_a_file_and_never_from_a_command_line(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(kind, tmp_path / "keys", "builder", passphrase=PASSPHRASE)
    if kind == "gpg":
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)  # it remembers what the key was made with
    seen: list[str] = []
    real = signing.run
    monkeypatch.setattr(signing, "run", lambda argv, **named: (seen.extend(argv), real(argv, **named))[1])
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    signer = Signer(kind=kind, key=key.signer.key, passphrase_file=tmp_path / "passphrase")
    sign_build(store, artifact, signer)
    assert verdict(artifact, key.trust)[0] == Verdict.OK
    assert not [word for word in seen if PASSPHRASE in word]

    (tmp_path / "passphrase").write_text("wrong\n")
    if kind == "gpg":
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)
    with pytest.raises(SignatureError) as caught:
        sign_build(store, artifact, signer, replace=True)
    assert "passphrase" in caught.value.hint


def test_an_expired_or_foreign_gpg_key_does_not_count(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path
) -> None:
    key = make_key("gpg", tmp_path / "keys", "builder")
    sign_build(store, artifact, key.signer)
    empty = tmp_path / "empty.asc"
    empty.write_text("no key")
    assert "holds no gpg public key" in verdict(artifact, Trust(keyring=empty))[1]


def test_an_ssh_signature_for_something_else_does_not_count(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path
) -> None:
    key = make_key("ssh", tmp_path / "keys", "builder")
    copy = tmp_path / "provenance.json"
    shutil.copyfile(artifact.path / PROVENANCE, copy)
    run("ssh-keygen", "-Y", "sign", "-f", key.signer.key, "-n", "git", copy)
    store.attach(artifact, SIGNATURES["ssh"], copy.with_suffix(".json.sig").read_bytes())
    assert "does not fit" in verdict(artifact, key.trust)[1]


def test_a_missing_program_is_named(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="minisign is missing") as caught:
        sign_build(store, artifact, Signer(kind="minisign", key="x"))
    assert "apt-get install minisign" in caught.value.hint
    with pytest.raises(DependencyError, match="ssh-keygen is missing"):
        signing.verify(artifact.path / PROVENANCE, {"ssh": tmp_path}, Trust(allowed_signers=tmp_path))


def test_a_build_without_provenance_cannot_be_signed(store: ArtifactStore, tmp_path: Path) -> None:
    old = add_build(store, tmp_path, "old", attested=False)
    with pytest.raises(ArtifactError, match="no provenance"):
        sign_build(store, old, Signer(kind="ssh", key="x"))


@pytest.mark.parametrize("text", ["", "ssh", "ssh:", "pgp:me", "ssh:/no/such/file", "gpg:--output=/etc/x", ":x"])
def test_a_signer_that_makes_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        signing.parse_signer(text)


def test_a_signer_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    assert signing.parse_signer(f"ssh:{tmp_path}/key") == Signer(kind="ssh", key=f"{tmp_path}/key")
    assert signing.parse_signer("gpg:me@example.org") == Signer(kind="gpg", key="me@example.org")


@pytest.mark.parametrize("trust", [Trust(allowed_signers=Path("/no/such")), Trust(keyring=Path("/no/such")),
                                   Trust(pubkey="no key")])
def test_a_key_to_trust_that_is_not_there(artifact: Artifact, tmp_path: Path, trust: Trust) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UsageError):
        signing.verify(artifact.path / PROVENANCE, dict.fromkeys(KINDS, tmp_path / "x"), trust)
