"""What is to be built when it is not just a reference; and the verb that shows what a build contained."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import common, verb
from kwdb_build.cli.options import source as source_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import SourceTree
    from kwdb_build.source.gather import SourceChoice

_KEY = re.compile(r"^[0-9a-f]{8,64}$")


def chosen(settings: Settings, ref: str, options: Mapping[str, Any], *, keep: bool = True) -> tuple[str, SourceChoice]:
    """The reference and the choice that REF and the source options make together; UsageError when they contradict.

    Patches are read here, once, and with keep stored below home: a resume must not need the person's files again.
    """
    from kwdb_build.errors import UsageError
    from kwdb_build.source import patches
    from kwdb_build.source.gather import SourceChoice, names_local

    if options.get("bundle") is not None:
        return _of_bundle(settings, ref, options, keep=keep)
    local: Path | None = options.get("local")
    if ref and names_local(ref):
        if local is not None:
            raise UsageError(f"two sources: {ref} and --source {local}", hint="give one of them")
        local, ref = Path(ref), ""
    if local is None:
        if not ref:
            raise UsageError("what is to be built?", hint="give REF (tag, branch or commit), an archive, a directory, "
                             "or --bundle FILE")
        _require_local(options)
    elif ref:
        raise UsageError(f"two sources: {ref} and --source {local}", hint="a local source needs no REF: leave it out")
    files = patches.read_patches(options.get("patches") or ())
    kept = patches.keep(files, settings.home) if keep else tuple(file.patch for file in files)
    local = local.expanduser().absolute() if local is not None else None
    return ref or str(local), SourceChoice(
        local=local, version=options.get("source_version") or "", dirty=bool(options.get("dirty")),
        submodules=tuple(_pair(text) for text in options.get("submodule_sources") or ()), patches=kept,
    )


def _of_bundle(settings: Settings, ref: str, options: Mapping[str, Any], *, keep: bool) -> tuple[str, SourceChoice]:
    """A bundle that cli.bundle.opened has opened; REF may be left out, but may not be another one."""
    from kwdb_build.errors import UsageError
    from kwdb_build.source import patches
    from kwdb_build.source.bundle import Opened, bundled_patches
    from kwdb_build.source.gather import SourceChoice

    if options.get("local") is not None:
        raise UsageError("two sources: --bundle and --source", hint="give one of them")
    _require_local(options)
    opened: Opened = options["bundle"]
    held = opened.contents.source
    if ref and ref not in {held.ref, held.version.text} and not (len(ref) > 6 and held.commit.startswith(ref)):  # noqa: PLR2004
        raise UsageError(
            f"the bundle does not hold {ref}: it holds {held.ref} ({held.version}, commit {held.commit[:12]})",
            hint="leave REF out, or use another bundle",
        )
    files = patches.read_patches(options.get("patches") or ())
    given = patches.keep(files, settings.home) if keep else tuple(file.patch for file in files)
    held_patches = bundled_patches(opened, settings.home) if keep else opened.contents.patches
    choice = SourceChoice(bundle=opened.directory, patches=(*held_patches, *given))
    return ref or held.ref, choice


def _require_local(options: Mapping[str, Any]) -> None:
    from kwdb_build.errors import UsageError

    for name in ("source_version", "dirty", "submodule_sources"):
        if options.get(name):
            flag = "--submodule" if name == "submodule_sources" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} goes with an archive, a directory or a checkout", hint="name it as REF or by --source"
            )


def _pair(text: str) -> tuple[str, Path]:
    from kwdb_build.errors import UsageError

    name, equals, place = text.partition("=")
    if not equals or not place or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UsageError(
            f"not a submodule: {text!r}", hint="write PATH=FILE|DIR, such as kwbase/vendor=kw-vendor.tar.gz"
        )
    return str(PurePosixPath(name)), Path(place).expanduser().absolute()


@click.group()
def source() -> None:
    """Sources: what a build contained."""


@source.command("diff")
@click.argument("what", required=False, default="")
@click.option("--against", metavar="REF", help="Compare all files with those of this reference instead.")
@source_options
@common
@verb
def source_diff(console: Console, settings: Settings, *, what: str, against: str | None, **options: Any) -> int:
    """Show what a build contains beside its upstream commits: patches, uncommitted changes, moved submodules.

    WHAT is a run (its number), the key of a stored build (its first 8 digits or more), or a source as for `build`.
    Default: the newest run.
    """
    from kwdb_build.cli.bundle import opened
    from kwdb_build.files import private_directory
    from kwdb_build.source.difference import between, difference, facts

    settings = opened(console, settings, options)
    log = private_directory(settings.home / "logs") / "source-diff.log"
    tree = _tree(console, settings, what, options)
    lines = facts(tree)
    if against:
        upstream = _gathered(console, settings, against, {})
        title = f"{tree.version} against {against} ({upstream.commit[:12]})"
        text = between(upstream, tree, progress=console, log=log)
    else:
        title = f"{tree.version} against {tree.commit[:12]}"
        text = difference(tree, home=settings.home, progress=console, log=log)
    if console.as_json:
        console.data({"source": tree, "facts": lines, "diff": text})
        return 0
    console.note(title)
    for line in lines:
        console.note(f"  {line}")
    if text:
        console.text(text)
    else:
        plain = "" if against or lines else ": exactly this commit and its pinned submodules"
        console.note(f"no difference{plain}")
    if not against and tree.origin in {"archive", "directory"}:
        console.note("it came without git: --against REF compares it with a reference", style="dim")
    return 0


def _tree(console: Console, settings: Settings, what: str, options: Mapping[str, Any]) -> SourceTree:
    """The source of a run, of a stored build, or the one that is asked for like in `build`."""
    from kwdb_build.errors import UsageError
    from kwdb_build.model import SourceTree
    from kwdb_build.upgrade.rundir import RunDirectory

    if not any(options.get(name) for name in ("local", "patches", "bundle")):
        runs = {run.id: run for run in RunDirectory.all(settings.home)}
        numbers = {str(int(name.split("-")[0])): name for name in runs}
        if not what or what in runs or what in numbers:
            run = runs[numbers.get(what, what)] if what else RunDirectory.find(settings.home, None)
            if not run.source.exists():
                raise UsageError(f"run {run.id} ended before it had its source")
            return run.load(SourceTree, run.source)
        if _KEY.match(what) and (found := _of_build(settings, what)) is not None:
            return found
    return _gathered(console, settings, what, options)


def _of_build(settings: Settings, key: str) -> SourceTree | None:
    from pydantic import TypeAdapter

    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.errors import UsageError
    from kwdb_build.model import SourceTree

    store = ArtifactStore(settings.home / "artifacts")
    found = [artifact for artifact in store.list() if artifact.key.digest.startswith(key)]
    if not found:
        return None
    if len(found) > 1:
        raise UsageError(f"{len(found)} stored builds begin with {key}", hint="give more digits of the key")
    recorded = store.details(found[0]).get("source")
    if recorded is None:
        raise UsageError(f"the build {key} was made before its source was recorded")
    return TypeAdapter(SourceTree).validate_python(recorded)


def _gathered(console: Console, settings: Settings, ref: str, options: Mapping[str, Any]) -> SourceTree:
    from kwdb_build.cli.calllogs import logs_of_call
    from kwdb_build.upgrade.workshop import Workshop, fetched

    ref, choice = chosen(settings, ref, options)
    workshop = Workshop(settings, console, logs_of_call(settings.home))
    with console.step(1, 1, f"fetch {ref}"):
        tree: SourceTree = workshop.fetch(ref, url=settings.url, redirects=settings.redirect, choice=choice)
        console.update(fetched(tree))
    return tree
