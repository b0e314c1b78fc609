"""Errors that a person can act on, and the stable table of exit codes.

Every error says what happened (message), what was seen (context), what to do (hint) and where the full log is.
The exit codes are part of the interface: scripts depend on them, so numbers are never reused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of every verb. Their meaning never changes once released."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    REFUSED = 3
    SOURCE = 4
    DEPENDENCY = 5
    ENGINE = 6
    BUILD = 7
    ARTIFACT = 8
    SPACE = 9
    SERVER_NOT_FOUND = 10
    PERMISSION = 11
    LOCKED = 12
    NOT_STOPPED = 13
    BACKUP = 14
    START = 15
    VERIFY = 16
    NOT_REPRODUCIBLE = 17
    PATCH = 18
    BUNDLE = 19
    ROLLED_BACK = 20
    ROLLBACK_FAILED = 21
    NEEDS_RESUME = 22
    TRIAL = 24
    DOCTOR = 30
    SIGNATURE = 23
    INTERRUPTED = 130


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; for upgrade: the new version runs and passed verification",
    ExitCode.INTERNAL: "a defect of kwdb-build itself",
    ExitCode.USAGE: "wrong option or argument",
    ExitCode.REFUSED: "the gate refused this upgrade, or it was not confirmed; nothing changed",
    ExitCode.SOURCE: "source could not be fetched (reference, URL, network, submodule); nothing changed",
    ExitCode.DEPENDENCY: "a compilation dependency or the toolchain is missing or too old; nothing changed",
    ExitCode.ENGINE: "no usable container engine, or it died; nothing changed",
    ExitCode.BUILD: "the build failed; nothing changed",
    ExitCode.ARTIFACT: "a stored build does not match its manifest; nothing changed",
    ExitCode.SPACE: "not enough disk space; nothing changed",
    ExitCode.SERVER_NOT_FOUND: "no running kwbase was found, or several and none was chosen; nothing changed",
    ExitCode.PERMISSION: "not allowed to read or control the server; nothing changed",
    ExitCode.LOCKED: "another upgrade holds the lock; nothing changed",
    ExitCode.NOT_STOPPED: "the old server did not stop in time; it was not killed",
    ExitCode.BACKUP: "the backup could not be written or verified",
    ExitCode.START: "a server did not become ready",
    ExitCode.VERIFY: "the verification suite failed (verb `verify` alone)",
    ExitCode.NOT_REPRODUCIBLE: "two builds of the same key differ (`build --verify-reproducible`)",
    ExitCode.PATCH: "a patch does not apply, or is not allowed to; nothing changed",
    ExitCode.BUNDLE: "a bundle is damaged, altered, or not signed as wanted; nothing of it was used",
    ExitCode.ROLLED_BACK: "the upgrade failed; the old version runs again on its own data and was verified",
    ExitCode.ROLLBACK_FAILED: "the upgrade failed and so did the way back: a person is needed now",
    ExitCode.NEEDS_RESUME: "a run was cut off; `kwdb-build resume` or `kwdb-build rollback` finishes it",
    ExitCode.DOCTOR: "`doctor` found something that is wrong; nothing changed",
    ExitCode.SIGNATURE: "a signature is missing, wrong, or of a key that is not allowed; nothing changed",
    ExitCode.TRIAL: "the new version failed its trial on an empty store; nothing changed",
    ExitCode.INTERRUPTED: "stopped on request (Ctrl-C) at a safe point; nothing changed",
}


class KwdbBuildError(Exception):
    """Base of everything a user can act on.

    message: one sentence, what failed. context: what was seen (may be several lines).
    hint: what to do next. log: the file with the whole story.
    """

    exit_code: ExitCode = ExitCode.INTERNAL
    reference: str = "internal-error"

    def __init__(self, message: str, *, context: str = "", hint: str = "", log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context = context
        self.hint = hint
        self.log = log

    def as_dict(self) -> dict[str, object]:
        """Shape of `error` in every --json answer."""
        return {
            "reference": self.reference,
            "exit_code": int(self.exit_code),
            "message": self.message,
            "context": self.context,
            "hint": self.hint,
            "log": str(self.log) if self.log else None,
        }


class UsageError(KwdbBuildError):
    """An option, argument or setting is wrong."""

    exit_code = ExitCode.USAGE
    reference = "usage"


class RefusedError(KwdbBuildError):
    """A gate said no, or the person did."""

    exit_code = ExitCode.REFUSED
    reference = "refused"


class SourceError(KwdbBuildError):
    """The source could not be had as asked for."""

    exit_code = ExitCode.SOURCE
    reference = "source"


class UnknownReferenceError(SourceError):
    """The repository has no such tag, branch or commit."""

    reference = "unknown-reference"


class UnreachableSourceError(SourceError):
    """The host does not answer, or its answer is no git."""

    reference = "unreachable-source"


class SubmoduleError(SourceError):
    """A submodule's pinned commit cannot be had, or is not what was checked out."""

    reference = "submodule"


class UnsafeArchiveError(SourceError):
    """An archive of the source is damaged, or holds what must not be unpacked."""

    reference = "unsafe-archive"


class DirtySourceError(SourceError):
    """A working tree has uncommitted changes, and nobody said that they are wanted."""

    reference = "dirty-source"


class PatchError(KwdbBuildError):
    """A patch does not apply, leads out of the tree, or is none."""

    exit_code = ExitCode.PATCH
    reference = "patch"


class BundleError(KwdbBuildError):
    """A bundle is damaged, altered, of another kind, or lacks the wanted signature."""

    exit_code = ExitCode.BUNDLE
    reference = "bundle"


class DependencyError(KwdbBuildError):
    """The toolchain lacks what the fetched tree asks for, or is malformed."""

    exit_code = ExitCode.DEPENDENCY
    reference = "dependency"


class EngineError(KwdbBuildError):
    """The container engine is missing, too old, unreachable or died."""

    exit_code = ExitCode.ENGINE
    reference = "engine"


class BuildError(KwdbBuildError):
    """The compiler, make or the check of its results failed."""

    exit_code = ExitCode.BUILD
    reference = "build"


class NotReproducibleError(KwdbBuildError):
    """Two builds of the same key have different bytes."""

    exit_code = ExitCode.NOT_REPRODUCIBLE
    reference = "not-reproducible"


class ArtifactError(KwdbBuildError):
    """A stored build is incomplete or not what its manifest says."""

    exit_code = ExitCode.ARTIFACT
    reference = "artifact"


class SpaceError(KwdbBuildError):
    """A file system is too small for what comes next."""

    exit_code = ExitCode.SPACE
    reference = "space"


class ServerNotFoundError(KwdbBuildError):
    """No kwbase runs here, or several do and none was chosen."""

    exit_code = ExitCode.SERVER_NOT_FOUND
    reference = "server-not-found"


class AccessError(KwdbBuildError):
    """This user may not read or signal the server, or read its files."""

    exit_code = ExitCode.PERMISSION
    reference = "permission"


class LockedError(KwdbBuildError):
    """Another kwdb-build works on the same thing."""

    exit_code = ExitCode.LOCKED
    reference = "locked"


class NotStoppedError(KwdbBuildError):
    """The server did not end within the agreed time."""

    exit_code = ExitCode.NOT_STOPPED
    reference = "not-stopped"


class BackupError(KwdbBuildError):
    """A backup could not be written, or does not match what was copied."""

    exit_code = ExitCode.BACKUP
    reference = "backup"


class StartError(KwdbBuildError):
    """A server died, or did not become ready, or is not the same node."""

    exit_code = ExitCode.START
    reference = "start"


class TrialError(KwdbBuildError):
    """The new version did not live through its trial; the old one was not touched."""

    exit_code = ExitCode.TRIAL
    reference = "trial"


class VerifyError(KwdbBuildError):
    """The verification suite failed, or had nothing to run."""

    exit_code = ExitCode.VERIFY
    reference = "verify"


class SignatureError(KwdbBuildError):
    """A signature could not be made, is missing, wrong, or by somebody who does not count."""

    exit_code = ExitCode.SIGNATURE
    reference = "signature"


class RolledBackError(KwdbBuildError):
    """The upgrade failed and everything is as before."""

    exit_code = ExitCode.ROLLED_BACK
    reference = "rolled-back"


class RollbackFailedError(KwdbBuildError):
    """The upgrade failed and so did the way back."""

    exit_code = ExitCode.ROLLBACK_FAILED
    reference = "rollback-failed"


class NeedsResumeError(KwdbBuildError):
    """A run was cut off between two safe points."""

    exit_code = ExitCode.NEEDS_RESUME
    reference = "needs-resume"


class InterruptedByUserError(KwdbBuildError):
    """Ctrl-C or SIGTERM to the tool, honoured at a safe point."""

    exit_code = ExitCode.INTERRUPTED
    reference = "interrupted"
