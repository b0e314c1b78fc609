"""Signatures over a build's provenance, made and checked by the programs that people already have keys for.

The provenance names the sha256 of every file and of the SBOM, so one signature covers all of it. Each kind is the
program's own detached format and can be checked without kwdb-build:
    ssh-keygen -Y verify -n kwdb-build -f ALLOWED -I WHO -s provenance.json.sig < provenance.json
    gpg --verify provenance.json.asc provenance.json
    minisign -Vm provenance.json -x provenance.json.minisig -p KEY.pub
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.command import CommandError, quote, run
from kwdb_build.errors import DependencyError, SignatureError, UsageError
from kwdb_build.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kwdb_build.command import Completed

NAMESPACE = "kwdb-build"
"""What an ssh signature is for: one made for git or for mail is not accepted here, nor ours there."""
PROGRAMS = {"ssh": "ssh-keygen", "gpg": "gpg", "minisign": "minisign"}
_PACKAGES = {"ssh-keygen": "openssh-client", "gpg": "gnupg", "minisign": "minisign"}
_TIMEOUT_S = 120.0
_STATUS = re.compile(r"^\[GNUPG:\] (?P<word>[A-Z_]+)(?: (?P<rest>.*))?$", re.MULTILINE)
_TRUSTED_COMMENT = re.compile(r"^Trusted comment: (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs: kind 'ssh', 'gpg' or 'minisign', and the key (a file; for gpg a key id, fingerprint or address)."""

    kind: str
    key: str
    passphrase_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures count: ssh's file of allowed signers, a gpg keyring (any export), a minisign public key.

    pubkey is a file, or the key itself. At least one that is given must have signed.
    """

    allowed_signers: Path | None = None
    keyring: Path | None = None
    pubkey: str = ""

    def __bool__(self) -> bool:
        return bool(self.allowed_signers or self.keyring or self.pubkey)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of signature it can judge."""
        given = {"ssh": self.allowed_signers, "gpg": self.keyring, "minisign": self.pubkey}
        return tuple(kind for kind, value in given.items() if value)


def parse_signer(text: str, *, passphrase_file: Path | None = None) -> Signer:
    """`ssh:FILE`, `gpg:KEY` or `minisign:FILE` -> Signer; UsageError names what is wrong."""
    kind, colon, key = text.partition(":")
    if not colon or kind not in PROGRAMS or not key or key.startswith("-"):
        raise UsageError(
            f"cannot sign with {text!r}",
            hint="ssh:KEYFILE, gpg:KEYID or minisign:KEYFILE, such as ssh:~/.ssh/id_ed25519",
        )
    if kind != "gpg":
        path = Path(key).expanduser().absolute()
        if not path.is_file():
            raise UsageError(
                f"there is no key file {path}", hint="name the secret key; for ssh with an agent the .pub one"
            )
        key = str(path)
    if passphrase_file is not None and not passphrase_file.is_file():
        raise UsageError(f"there is no file {passphrase_file} with the passphrase")
    return Signer(kind=kind, key=key, passphrase_file=passphrase_file)


def sign(signer: Signer, document: Path) -> bytes:
    """Sign a file and return the detached signature.

    A passphrase comes from the signer's file or from the program's own agent, never from a command line. Errors:
    DependencyError (the program is missing), SignatureError with what the program said.
    """
    program = _program(signer.kind)
    with tempfile.TemporaryDirectory(prefix="kwdb-build-sign-") as temporary:
        place = Path(temporary)
        copy = place / document.name
        shutil.copyfile(document, copy)
        made = place / f"{document.name}.made"
        environment = dict(os.environ)
        given = None
        if signer.kind == "ssh":
            argv = [program, "-Y", "sign", "-f", signer.key, "-n", NAMESPACE, str(copy)]
            made = copy.with_name(f"{copy.name}.sig")
            environment |= _askpass(place, signer.passphrase_file)
        elif signer.kind == "gpg":
            argv = [program, "--batch", "--yes", "--armor", "--local-user", signer.key, "--output", str(made)]
            if signer.passphrase_file is not None:
                argv += ["--pinentry-mode", "loopback", "--passphrase-file", str(signer.passphrase_file)]
            argv += ["--detach-sign", str(copy)]
        else:
            argv = [program, "-S", "-s", signer.key, "-m", str(copy), "-x", str(made)]
            given = signer.passphrase_file
        done = _run(argv, env=environment, stdin=given)
        if not done.ok or not made.is_file():
            raise SignatureError(
                f"{signer.kind} did not sign with {signer.key}", context=_said(done) or quote(argv),
                hint="a key with a passphrase needs its agent, or --passphrase-file (a file that only you can read)",
            )
        return made.read_bytes()


def _askpass(place: Path, passphrase_file: Path | None) -> Mapping[str, str]:
    """What makes ssh-keygen read a passphrase from a file: a helper that prints it, as there is no option for it."""
    if passphrase_file is None:
        return {"SSH_ASKPASS_REQUIRE": "never"}
    helper = place / "askpass"
    write_atomic(helper, '#!/bin/sh\nexec cat -- "$KWDB_BUILD_PASSPHRASE"\n', mode=0o700)
    return {"SSH_ASKPASS": str(helper), "SSH_ASKPASS_REQUIRE": "force", "KWDB_BUILD_PASSPHRASE": str(passphrase_file)}


def verify(document: Path, signatures: Mapping[str, Path], trust: Trust) -> str:
    """Who signed, in words, when one signature is by someone whom trust names; SignatureError otherwise.

    signatures: kind -> file. A bad signature of a kind that is asked for is an error also when another one is good.
    """
    wanted = [kind for kind in trust.kinds if kind in signatures]
    if not wanted:
        have = ", ".join(signatures) or "none at all"
        raise SignatureError(
            f"there is no {' or '.join(trust.kinds)} signature", context=f"it has: {have}",
            hint="sign it with `kwdb-build artifact sign`, or give the option for the kind that it has",
        )
    return "; ".join(_verify_one(kind, document, signatures[kind], trust) for kind in wanted)


def _verify_one(kind: str, document: Path, signature: Path, trust: Trust) -> str:
    check = {"ssh": _verify_ssh, "gpg": _verify_gpg, "minisign": _verify_minisign}[kind]
    _program(kind)
    return check(document, signature, trust)


def _verify_ssh(document: Path, signature: Path, trust: Trust) -> str:
    allowed = _existing(trust.allowed_signers, "file of allowed signers")
    found = _run(["ssh-keygen", "-Y", "find-principals", "-f", str(allowed), "-s", str(signature)], stdin=document)
    who = [line.strip() for line in found.stdout.splitlines() if line.strip()]
    if not found.ok or not who:
        raise _refused("ssh", signature, f"its key is not among the allowed signers in {allowed}", found)
    done = _run(
        ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", who[0], "-n", NAMESPACE, "-s", str(signature)],
        stdin=document,
    )
    if not done.ok:
        raise _refused("ssh", signature, "it does not fit the provenance", done)
    return f"ssh: {who[0]}"


def _verify_gpg(document: Path, signature: Path, trust: Trust) -> str:
    keyring = _existing(trust.keyring, "keyring")
    with tempfile.TemporaryDirectory(prefix="kwdb-build-gpg-") as home:
        base = ["gpg", "--homedir", home, "--batch", "--no-autostart", "--status-fd", "1"]
        imported = _run([*base, "--import", str(keyring)])
        if "IMPORT_OK" not in imported.stdout:
            raise SignatureError(f"{keyring} holds no gpg public key", context=_said(imported))
        done = _run([*base, "--trust-model", "always", "--verify", str(signature), str(document)])
    words = {match["word"]: match["rest"] or "" for match in _STATUS.finditer(done.stdout)}
    if done.ok and {"GOODSIG", "VALIDSIG"} <= words.keys():
        fingerprint = words["VALIDSIG"].split()[0]
        return f"gpg: {words['GOODSIG'].partition(' ')[2]} ({fingerprint})"
    reasons = {
        "NO_PUBKEY": f"its key is not in {keyring}", "BADSIG": "it does not fit the provenance",
        "REVKEYSIG": "its key was revoked", "EXPKEYSIG": "its key has expired", "EXPSIG": "it has expired",
    }
    why = next((reason for word, reason in reasons.items() if word in words), "it cannot be read")
    raise _refused("gpg", signature, why, done)


def _verify_minisign(document: Path, signature: Path, trust: Trust) -> str:
    key = Path(trust.pubkey).expanduser()
    given = ["-p", str(key)] if _is_file(key) else ["-P", trust.pubkey]
    if given[0] == "-P" and not re.fullmatch(r"[A-Za-z0-9+/=]{40,80}", trust.pubkey):
        raise UsageError(f"{trust.pubkey!r} is neither a minisign public key nor a file with one")
    done = _run(["minisign", "-V", *given, "-m", str(document), "-x", str(signature)])
    if not done.ok:
        why = "its key is another one" if "key id" in _said(done).lower() else "it does not fit the provenance"
        raise _refused("minisign", signature, why, done)
    comment = _TRUSTED_COMMENT.search(done.stdout)
    return "minisign: " + (comment["text"] if comment else "verified")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _existing(path: Path | None, what: str) -> Path:
    if path is None or not path.is_file():
        raise UsageError(f"there is no {what} {path}")
    return path.absolute()


def _refused(kind: str, signature: Path, why: str, done: Completed) -> SignatureError:
    return SignatureError(
        f"the {kind} signature {signature.name} is not accepted: {why}", context=_said(done),
        hint="do not use this build before you know why",
    )


def _said(done: Completed) -> str:
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "\n".join(line for line in lines if not line.startswith("[GNUPG:]"))[-1500:]


def _program(kind: str) -> str:
    program = PROGRAMS[kind]
    if shutil.which(program) is None:
        raise DependencyError(
            f"{program} is missing: {kind} signatures can be neither made nor checked",
            hint=f"apt-get install {_PACKAGES[program]}, or use another kind of signature",
        )
    return program


def _run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: Path | None = None) -> Completed:
    environment = dict(env if env is not None else os.environ) | {"LC_ALL": "C"}
    try:
        return run(argv, check=False, env=environment, timeout_s=_TIMEOUT_S, stdin=stdin)
    except CommandError as error:
        raise SignatureError(error.message, context=error.context, hint=error.hint) from error
