"""Stored builds: list, show, verify, export, import, sign, prune."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import common, stack, verb
from kwdb_build.errors import KwdbBuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.build.pruning import Decision
    from kwdb_build.build.signing import Trust
    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Artifact, CheckResult

_PATH = click.Path(path_type=Path)
_KEY_HELP = "KEY is a key or the beginning of one, a version, or `latest`."
_trust = stack((
    click.option("--allowed-signers", type=_PATH, help="ssh: file of allowed signers, as git uses it."),
    click.option("--keyring", type=_PATH, help="gpg: exported public keys that count."),
    click.option("--pubkey", help="minisign: public key, or the file with it."),
))


@click.group()
def artifact() -> None:
    """Stored builds: list, show, verify, export, import, sign, prune."""


def _store(settings: Settings) -> ArtifactStore:
    from kwdb_build.build.store import ArtifactStore

    return ArtifactStore(settings.home / "artifacts")


def _trust_of(allowed_signers: Path | None, keyring: Path | None, pubkey: str | None) -> Trust:
    from kwdb_build.build.signing import Trust

    return Trust(allowed_signers=allowed_signers, keyring=keyring, pubkey=pubkey or "")


def _facts(one: Artifact) -> dict[str, Any]:
    from kwdb_build.build.pruning import size_of
    from kwdb_build.build.store import PROVENANCE, signature_kinds, stored_at

    return {
        "key": one.key.digest, "version": one.version.text, "commit": one.commit,
        "build_type": one.key.inputs.get("options", {}).get("build_type", ""),
        "toolchain": one.key.inputs.get("toolchain", {}).get("name", ""), "stored_at": stored_at(one),
        "size_bytes": size_of(one), "files": len(one.files), "path": str(one.path),
        "provenance": (one.path / PROVENANCE).is_file(), "signatures": signature_kinds(one),
    }


@artifact.command("list")
@common
@verb
def artifact_list(console: Console, settings: Settings) -> int:
    """All stored builds, the oldest first; damaged ones and those that were set aside are named, too."""
    from kwdb_build.build.store import stored_at
    from kwdb_build.files import human_bytes

    store = _store(settings)
    found, damaged = sorted(store.list(), key=stored_at), store.damaged()
    facts = [fact for fact in map(_facts, found) if fact["stored_at"]]  # else removed meanwhile
    if console.as_json:
        console.data({"artifacts": facts, "damaged": damaged})
        return 0
    rows = [
        (fact["key"][:12], fact["version"], fact["toolchain"], fact["build_type"], human_bytes(fact["size_bytes"]),
         time.strftime("%Y-%m-%d %H:%M", time.localtime(fact["stored_at"])),
         ", ".join(["provenance"] * fact["provenance"] + [*fact["signatures"]]) or "-")
        for fact in facts
    ]
    if rows:
        console.table("", ("key", "version", "toolchain", "type", "size", "stored", "attested"), rows, data=True)
    else:
        console.text(f"no stored build under {store.root}")
    for entry in damaged:
        console.note(f"not usable: {entry.path} ({entry.why})", style="yellow")
    return 0


@artifact.command("show", help=f"What a stored build is, file by file. {_KEY_HELP}")
@click.argument("key")
@common
@verb
def artifact_show(console: Console, settings: Settings, *, key: str) -> int:
    """One build and its files; nothing is hashed."""
    from kwdb_build.build.inspection import attestation_of
    from kwdb_build.files import human_bytes

    store = _store(settings)
    one = store.resolve(key)
    store.keep(one)
    attested = attestation_of(one)
    if console.as_json:
        console.data({"artifact": {**_facts(one), "manifest": one.files, "details": store.details(one),
                                   "inputs": one.key.inputs, "attestation": attested}})
        return 0
    fact = _facts(one)
    rows = [
        ("version", one.version.text), ("key", one.key.digest), ("commit", one.commit),
        ("toolchain", f"{fact['toolchain']}, {fact['build_type']}"), ("provenance", attested.in_words()),
        ("stored", time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(fact["stored_at"]))), ("path", str(one.path)),
    ]
    rows += [(entry.path, f"{entry.sha256}  {human_bytes(entry.size)}") for entry in one.files]
    console.table("", ("", ""), rows, data=True)
    return 0


@artifact.command("verify", help=f"Check files, provenance, bill of materials and signature. {_KEY_HELP}")
@click.argument("key")
@_trust
@common
@verb
def artifact_verify(
    console: Console, settings: Settings, *, key: str, allowed_signers: Path | None, keyring: Path | None,
    pubkey: str | None,
) -> int:
    """Read everything again and say exactly what is wrong with which file; nothing is changed."""
    from kwdb_build.build.inspection import inspect, require

    store = _store(settings)
    one = store.resolve(key)
    store.keep(one)
    rows = inspect(one, _trust_of(allowed_signers, keyring, pubkey))
    answer = {"artifact": _facts(one), "checks": rows}
    if not console.as_json:
        console.table(f"{one.version} ({one.key.short})", _COLUMNS, _cells(rows), data=True)
    try:
        require(one, rows)
    except KwdbBuildError as error:
        error.result = answer  # type: ignore[attr-defined]  # shown inside of the one answer that a failure gives
        raise
    if console.as_json:
        console.data(answer)
    return 0


_COLUMNS = ("check", "verdict", "required", "found")


def _cells(rows: Sequence[CheckResult]) -> list[tuple[str, ...]]:
    return [(row.name, str(row.verdict), row.required, row.found) for row in rows]


@artifact.command("export", help=f"Write a stored build into one .tar.zst. {_KEY_HELP}")
@click.argument("key")
@click.option("--output", "-o", type=_PATH, help="File, or a directory for the usual name (default: here).")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@common
@verb
def artifact_export(console: Console, settings: Settings, *, key: str, output: Path | None, force: bool) -> int:
    """One file, to be imported elsewhere or installed by hand."""
    from kwdb_build.build.archive import archive_name, export
    from kwdb_build.files import human_bytes

    store = _store(settings)
    one = store.resolve(key)
    place = output or Path()
    target = (place / archive_name(one) if place.is_dir() else place).absolute()
    with console.step(1, 1, f"export {one.version}"):
        digest = export(store, one, target, force=force, progress=console)
        console.update(human_bytes(target.stat().st_size))
    if console.as_json:
        console.data({"artifact": _facts(one), "file": target, "sha256": digest, "size_bytes": target.stat().st_size})
    else:
        console.text(f"{digest}  {target}")
    return 0


@artifact.command("import")
@click.argument("file", type=_PATH)
@click.option("--foreign", is_flag=True, help="Also a build for another kind of machine than this one.")
@_trust
@common
@verb
def artifact_import(
    console: Console, settings: Settings, *, file: Path, foreign: bool, allowed_signers: Path | None,
    keyring: Path | None, pubkey: str | None,
) -> int:
    """Add the build in FILE to the store: all of it is verified, and upgrades of the same key then find it."""
    from kwdb_build.build.intake import import_archive

    trust = _trust_of(allowed_signers, keyring, pubkey)
    with console.step(1, 1, f"import {file.name}"):
        one, new = import_archive(_store(settings), file, trust=trust, foreign=foreign, progress=console)
        console.update(f"{one.version}, key {one.key.short}" if new else f"{one.key.short} was stored already")
    if not trust and new:
        console.note("not checked against a signature: whole, but from whoever made that file", style="yellow")
    if console.as_json:
        console.data({"artifact": _facts(one), "new": new})
    else:
        console.text(f"{one.key.digest}  {one.version}")
    return 0


@artifact.command("sign", help=f"Sign a stored build's provenance, and by that every file of it. {_KEY_HELP}")
@click.argument("key")
@click.option("--with", "signer", required=True, metavar="KIND:KEY", help="ssh:KEYFILE, gpg:KEYID or minisign:KEYFILE.")
@click.option("--passphrase-file", type=_PATH, help="File with the key's passphrase (else the program's own agent).")
@click.option("--replace", is_flag=True, help="Put it in the place of a signature of the same kind, whoever made that.")
@common
@verb
def artifact_sign(
    console: Console, settings: Settings, *, key: str, signer: str, passphrase_file: Path | None, replace: bool
) -> int:
    """Verify the build, then sign it."""
    from kwdb_build.build.inspection import sign_build
    from kwdb_build.build.signing import parse_signer

    store = _store(settings)
    one = store.resolve(key)
    kind = parse_signer(signer, passphrase_file=passphrase_file)
    path = sign_build(store, one, kind, replace=replace)
    if console.as_json:
        console.data({"artifact": _facts(one), "signature": path})
    else:
        console.text(str(path))
    return 0


@artifact.command("prune")
@click.option("--keep", type=click.IntRange(min=0), help="The newest N stay in any case.")
@click.option("--older-than", metavar="AGE", help="What was stored longer ago goes: 12h, 30d, 8w.")
@click.option("--max-size", metavar="SIZE", help="The oldest go until the rest is no larger, such as 10g.")
@click.option("--set-aside", is_flag=True, help="Also what was set aside as changed or incomplete.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@common
@verb
def artifact_prune(
    console: Console, settings: Settings, *, keep: int | None, older_than: str | None, max_size: str | None,
    set_aside: bool, dry_run: bool,
) -> int:
    """Remove stored builds that are not needed any more.

    Never what a run can be resumed with, never both versions of the last upgrade, never what is in use now.
    """
    from kwdb_build.build import pruning
    from kwdb_build.build.recipe import parse_size
    from kwdb_build.errors import UsageError
    from kwdb_build.upgrade.needed import needed_builds

    if keep is None and older_than is None and max_size is None and not set_aside:
        raise UsageError("say what may go", hint="--keep N, --older-than AGE, --max-size SIZE or --set-aside")
    store = _store(settings)
    found = store.list()
    decisions: tuple[Decision, ...] = ()
    if not (keep is None and older_than is None and max_size is None):
        decisions = pruning.decide(
            found, pruning.times_of(found), pruning.Wanted(
                keep=keep, older_s=pruning.parse_age(older_than) if older_than else None,
                max_bytes=parse_size(max_size) if max_size else None,
            ),
            needed=needed_builds(settings.home, found), now=time.time(),
        )
    aside = len([entry for entry in store.damaged() if entry.path.parent != store.root]) if set_aside else 0
    if not dry_run:
        decisions = pruning.execute(store, decisions)
        aside = pruning.remove_set_aside(store) if set_aside else 0
    _tell_pruned(console, decisions, aside, dry_run=dry_run)
    return 0


def _tell_pruned(console: Console, decisions: Sequence[Decision], aside: int, *, dry_run: bool) -> None:
    from kwdb_build.files import human_bytes

    freed = sum(decision.size_bytes for decision in decisions if decision.remove)
    if console.as_json:
        rows = [{"key": d.artifact.key.digest, "version": d.artifact.version.text, "removed": d.remove,
                 "reason": d.reason, "size_bytes": d.size_bytes} for d in decisions]
        console.data({"dry_run": dry_run, "artifacts": rows, "set_aside": aside, "freed_bytes": freed})
        return
    word = "would go" if dry_run else "gone"
    cells = [
        (d.artifact.key.short, d.artifact.version.text, word if d.remove else "stays", d.reason,
         human_bytes(d.size_bytes))
        for d in decisions
    ]
    if cells:
        console.table("", ("key", "version", "", "why", "size"), cells, data=True)
    if aside:
        console.note(f"{aside} set aside: {word}")
    console.note(f"{human_bytes(freed)} {'would be freed' if dry_run else 'freed'}")
