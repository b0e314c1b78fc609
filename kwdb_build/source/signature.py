"""Optional check that a tag or a commit was signed by somebody who is allowed to (gpg or ssh, by git itself)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command
from kwdb_build.errors import SourceError, UsageError

if TYPE_CHECKING:
    from kwdb_build.source.client import GitClient
    from kwdb_build.source.reference import Target

KINDS = ("tag", "commit", "any")


@dataclass(frozen=True, kw_only=True)
class SignatureRule:
    """What must be signed: '' nothing, 'tag', 'commit', or 'any' of both; and by whom.

    allowed_signers is ssh's file of that name, keyring a file of exported gpg public keys. With one or both given,
    nobody else counts; with neither, git's own configuration and the person's own keys decide.
    """

    require: str = ""
    allowed_signers: Path | None = None
    keyring: Path | None = None


class SignatureRefusedError(SourceError):
    """What was asked for is not signed as the settings require."""

    reference = "signature"


def require_signed(client: GitClient, repository: Path, target: Target, rule: SignatureRule) -> str:
    """Who signed target, in words ('' when nothing is required); SignatureRefusedError when it is not as required."""
    if not rule.require:
        return ""
    if rule.require not in KINDS:
        raise UsageError(f"require_signature = {rule.require!r}", hint=f"one of: {', '.join(KINDS)}")
    for path in (rule.allowed_signers, rule.keyring):
        if path is not None and not path.is_file():
            raise UsageError(f"no file with signers at {path}", hint="see the settings allowed_signers and keyring")
    with tempfile.TemporaryDirectory(prefix="kwdb-build-signers-") as scratch:
        judge = _judge(client, rule, Path(scratch))
        words = []
        if rule.require in {"tag", "any"}:
            good, said = _tag(judge, repository, target)
            if good:
                return f"tag {target.name}: {said}"
            words.append(said)
        if rule.require in {"commit", "any"}:
            good, said = _verify(judge, repository, "verify-commit", target.commit)
            if good:
                return f"commit {target.commit[:12]}: {said}"
            words.append(said)
    raise SignatureRefusedError(
        f"{target.name} is not signed by an allowed signer", context="\n".join(words),
        hint="require_signature asks for it; allowed_signers (ssh) and keyring (gpg) say whose signature counts",
        log=client.log,
    )


def _judge(client: GitClient, rule: SignatureRule, scratch: Path) -> GitClient:
    """A client that knows the allowed signers and no others."""
    if rule.allowed_signers is None and rule.keyring is None:
        return client
    scratch.chmod(0o700)
    if rule.keyring is not None:
        command.run(
            ["gpg", "--homedir", str(scratch), "--batch", "--quiet", "--no-autostart", "--import",
             str(rule.keyring.absolute())],
        )
    signers = rule.allowed_signers.absolute() if rule.allowed_signers is not None else Path("/dev/null")
    return replace(
        client.configured(
            ("gpg.ssh.allowedSignersFile", str(signers)), ("gpg.minTrustLevel", "undefined"),
            ("gpg.program", "gpg"), ("gpg.ssh.program", "ssh-keygen"),
        ),
        variables=(*client.variables, ("GNUPGHOME", str(scratch))),
    )


def _tag(judge: GitClient, repository: Path, target: Target) -> tuple[bool, str]:
    if target.kind != "tag":
        return False, f"{target.name} is a {target.kind} and no tag"
    name = f"refs/tags/{target.name}"
    body = judge.run("cat-file", "tag", name, cwd=repository, what="reading the tag", check=False)
    if not body.ok:
        return False, f"{target.name} is a tag without a signature (not annotated)"
    # A signed tag of an old release under the name of a new one would verify as well.
    inner = next((line[4:] for line in body.stdout.split("\n\n", 1)[0].split("\n") if line.startswith("tag ")), "")
    if inner != target.name:
        return False, f"the tag {target.name} was made and signed as {inner!r}"
    return _verify(judge, repository, "verify-tag", name)


def _verify(judge: GitClient, repository: Path, verb: str, name: str) -> tuple[bool, str]:
    found = judge.run(verb, name, cwd=repository, what="verifying the signature", check=False)
    lines = [line.strip() for line in found.stderr.splitlines() if line.strip()]
    good = [line for line in lines if "good" in line.casefold()]
    return found.ok, (good[0] if found.ok and good else "; ".join(lines) or f"{name} has no signature")
