"""Everything that can be checked about one stored build, as rows: files, provenance, bill of materials, signature."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build import provenance, sbom, signing
from kwdb_build.build.store import BESIDE, PROVENANCE, SBOM, SIGNATURES, signature_kinds
from kwdb_build.errors import ArtifactError, SignatureError, UsageError
from kwdb_build.files import check_manifest
from kwdb_build.model import CheckResult, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.model import Artifact

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""`uname -m` -> the name that toolchains and package archives use."""
_NONE = "none: stored by a kwdb-build that did not write it yet"


class SignedAlreadyError(UsageError):
    """A signature of that kind is there, and was not said to go."""

    reference = "signed-already"


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What an upgrade tells about the build that it uses; signed names the kinds of signature that lie beside it."""

    provenance: bool
    builder: str = ""
    image: str = ""
    finished: str = ""
    signed: tuple[str, ...] = ()

    def in_words(self) -> str:
        """One line for people."""
        if not self.provenance:
            return _NONE
        signed = f"signed ({', '.join(self.signed)})" if self.signed else "not signed"
        return f"SLSA v1, {self.builder}, {self.finished}, {signed}"


def attestation_of(artifact: Artifact) -> Attestation:
    """Compare the provenance with the manifest (the files themselves are checked elsewhere).

    A build without one is usable: older kwdb-builds made none. ArtifactError when it is there and says other than the
    files.
    """
    document = _document(artifact, PROVENANCE)
    if document is None:
        return Attestation(provenance=False)
    try:
        statement = provenance.parse(document)
    except ValueError as error:
        raise _wrong(artifact, [f"{PROVENANCE}: {error}"]) from error
    if problems := provenance.disagreements(statement, artifact, _document(artifact, SBOM)):
        raise _wrong(artifact, problems)
    run = statement.predicate.run_details
    image = next((one.digest.get("sha256", "") for one in statement.predicate.build_definition.resolved_dependencies
                  if one.name == "build image"), "")
    return Attestation(
        provenance=True, image=image, finished=f"{run.metadata.finished_on:%Y-%m-%d %H:%M:%S} UTC",
        builder=", ".join(f"{name} {version}" for name, version in run.builder.version.items()),
        signed=signature_kinds(artifact),
    )


def _wrong(artifact: Artifact, problems: list[str]) -> ArtifactError:
    return ArtifactError(
        f"the provenance of {artifact.version} ({artifact.key.short}) is not that of its files",
        context="\n".join(problems),
        hint=f"it was changed after the build: remove {artifact.path} and build again",
    )


def inspect(artifact: Artifact, trust: signing.Trust) -> tuple[CheckResult, ...]:
    """All rows, whatever their verdicts. The signature is judged only when trust names somebody."""
    bill = _document(artifact, SBOM)
    return (
        _files(artifact), _machine(artifact), _provenance(artifact, bill), _bill(bill), _signature(artifact, trust),
    )


def require(artifact: Artifact, rows: tuple[CheckResult, ...], *, hint: str = "") -> None:
    """SignatureError when only the signature is wrong, ArtifactError when anything else is."""
    failed = [row for row in rows if row.verdict == Verdict.FAIL]
    if not failed:
        return
    context = "\n".join(f"{row.name}: {line}" for row in failed for line in row.found.splitlines())
    if all(row.name == "signature" for row in failed):
        raise SignatureError(
            f"the signature of {artifact.version} ({artifact.key.short}) is not accepted", context=context,
            hint="do not use this build before you know why",
        )
    raise ArtifactError(
        f"the build {artifact.version} ({artifact.key.short}) is not what was built", context=context,
        hint=hint or f"do not use it: remove {artifact.path} and build again",
    )


def sign_build(
    store: ArtifactStore, artifact: Artifact, signer: signing.Signer, *, replace: bool = False
) -> Path:
    """Sign the provenance of a stored build that is verified first; return where the signature lies.

    A build has one signature of each kind. One that is there may be somebody else's: it goes only with replace.
    Errors: SignedAlreadyError, ArtifactError (changed, or without provenance), SignatureError, DependencyError.
    """
    if signer.kind in signature_kinds(artifact) and not replace:  # before anything is hashed or a passphrase asked for
        raise _signed(artifact, signer.kind)
    store.hold(artifact)
    if not attestation_of(artifact).provenance:
        raise ArtifactError(
            f"{artifact.version} ({artifact.key.short}) has no provenance that could be signed",
            hint="it was stored by an older kwdb-build: remove it and build again",
        )
    name = SIGNATURES[signer.kind]
    if not store.attach(artifact, name, signing.sign(signer, artifact.path / PROVENANCE), replace=replace):
        raise _signed(artifact, signer.kind)
    return artifact.path / name


def _signed(artifact: Artifact, kind: str) -> SignedAlreadyError:
    option = {"ssh": "--allowed-signers", "gpg": "--keyring", "minisign": "--pubkey"}[kind]
    return SignedAlreadyError(
        f"{artifact.version} ({artifact.key.short}) has a signature of the kind {kind} already",
        context=str(artifact.path / SIGNATURES[kind]),
        hint=f"`kwdb-build artifact verify {artifact.key.short} {option} …` tells whose it is; `artifact sign "
        "--replace` puts yours in its place, a key of another kind signs beside it",
    )


def _files(artifact: Artifact) -> CheckResult:
    name, required = "files", f"{len(artifact.files)} as in the manifest"
    try:
        check_manifest(artifact.path, artifact.files, ignore=BESIDE)
    except ArtifactError as error:
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found=error.context)
    return CheckResult(name=name, verdict=Verdict.OK, required=required, found="all")


def _machine(artifact: Artifact) -> CheckResult:
    """Whether kwbase is for the architecture that the key names; one for another machine than this is only told."""
    from kwdb_build.build.elf import MACHINES, read_elf

    required = architecture_of(artifact)
    try:
        found = read_elf(artifact.kwbase).machine
    except (ValueError, OSError) as error:
        return CheckResult(name="machine", verdict=Verdict.FAIL, required=required, found=f"bin/kwbase: {error}")
    wanted = {ARCHITECTURES.get(name, name): machine for name, machine in MACHINES.items()}.get(required, "")
    if wanted and found != wanted:
        return CheckResult(name="machine", verdict=Verdict.FAIL, required=required, found=f"bin/kwbase is {found}")
    here = required in {"", this_architecture()}
    return CheckResult(
        name="machine", verdict=Verdict.OK if here else Verdict.WARN, required=required,
        found=found if here else f"{found}: for another machine than this one",
    )


def architecture_of(artifact: Artifact) -> str:
    """The architecture that a build's key names, '' for keys without one."""
    return str(artifact.key.inputs.get("toolchain", {}).get("architecture", ""))


def this_architecture() -> str:
    """This machine's architecture by the name that toolchains use."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def _provenance(artifact: Artifact, bill: bytes | None) -> CheckResult:
    name, required = "provenance", "in-toto Statement v1, SLSA v1, all files"
    document = _document(artifact, PROVENANCE)
    if document is None:
        return CheckResult(name=name, verdict=Verdict.WARN, required=required, found=_NONE)
    try:
        statement = provenance.parse(document)
    except ValueError as error:
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found=f"{PROVENANCE}: {error}")
    if problems := provenance.disagreements(statement, artifact, bill):
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found="\n".join(problems))
    return CheckResult(
        name=name, verdict=Verdict.OK, required=required, found=f"{len(statement.subject)} files, "
        f"{len(statement.predicate.build_definition.resolved_dependencies)} inputs",
    )


def _bill(bill: bytes | None) -> CheckResult:
    name, required = "sbom", f"CycloneDX {sbom.SPEC_VERSION}"
    if bill is None:
        return CheckResult(name=name, verdict=Verdict.WARN, required=required, found=_NONE)
    if problems := sbom.problems_of(bill):
        found = "\n".join(f"{SBOM}: {problem}" for problem in problems)
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found=found)
    return CheckResult(name=name, verdict=Verdict.OK, required=required, found="valid")


def _signature(artifact: Artifact, trust: signing.Trust) -> CheckResult:
    kinds = signature_kinds(artifact)
    if not trust:
        words = f"{', '.join(kinds)}: not checked, as no key was given" if kinds else "not signed"
        return CheckResult(name="signature", verdict=Verdict.SKIP, required="none asked for", found=words)
    required = " or ".join(trust.kinds)
    try:
        who = signing.verify(
            artifact.path / PROVENANCE, {kind: artifact.path / SIGNATURES[kind] for kind in kinds}, trust
        )
    except SignatureError as error:
        found = "\n".join(filter(None, (error.message, error.context)))
        return CheckResult(name="signature", verdict=Verdict.FAIL, required=required, found=found)
    return CheckResult(name="signature", verdict=Verdict.OK, required=required, found=who)


def _document(artifact: Artifact, name: str) -> bytes | None:
    path: Path = artifact.path / name
    return path.read_bytes() if path.is_file() else None
