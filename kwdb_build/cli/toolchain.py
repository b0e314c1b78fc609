"""Toolchains: what a build image holds, and where it comes from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Toolchain

_NAME = click.argument("name")


@click.group()
def toolchain() -> None:
    """Toolchains: what a build image holds. NAME is one of `list`, or a folder with a toolchain.toml."""


@toolchain.command("list")
@common
@verb
def toolchain_list(console: Console, settings: Settings) -> int:
    """Known toolchains and the KWDB versions they serve."""
    found = _known(settings)
    if console.as_json:
        console.data({"toolchains": found})
        return 0
    rows = [(t.name, t.serves, f"{t.distribution} {t.release}", t.glibc, str(len(t.locked_packages)),
             t.lock_digest[:16]) for t in found]
    console.table("", ("name", "serves", "distribution", "glibc", "packages", "lock"), rows, data=True)
    return 0


@toolchain.command("show")
@_NAME
@common
@verb
def toolchain_show(console: Console, settings: Settings, *, name: str) -> int:
    """All that a toolchain holds."""
    found = _load(name, settings)
    if console.as_json:
        console.data({"toolchain": found, "image": found.image_tag})
        return 0
    base = found.base_image or f"{len(found.debian)} packages, bootstrapped"
    facts = [
        ("serves", f"KWDB {found.serves}"),
        ("base", f"{found.distribution} {found.release} {found.architecture}: {base}"),
        ("glibc", f"{found.glibc}: what it builds runs with that or a newer one"), ("image", found.image_tag),
        ("lock", f"{found.lock_path}  {found.lock_digest[:16]}"), ("wanted", " ".join(found.packages)),
        *((f"wheel {wheel.name}", f"{wheel.version} as {wheel.target}") for wheel in found.wheels),
        *((variable, value) for variable, value in found.environment.items()),
    ]
    console.table(found.name, ("", ""), facts, data=True)
    packages = [(entry.name, entry.version, entry.sha256[:16]) for entry in found.debian]
    console.table("", ("package", "version", "sha256"), packages, data=True)
    return 0


@toolchain.command("lock")
@_NAME
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would change.")
@common
@verb
def toolchain_lock(console: Console, settings: Settings, *, name: str, dry_run: bool = False) -> int:
    """Resolve a toolchain's packages and wheels anew, write its lock, and show what changed."""
    from kwdb_build.errors import DependencyError
    from kwdb_build.toolchain import load
    from kwdb_build.toolchain.lock import differences, lock, resolve

    place = load.find(name, search=load.toolchains_root())
    old = None
    with contextlib.suppress(DependencyError):  # none yet, or one that cannot be read: this makes it
        old = load.read_lock(place / load.LOCK_FILE, name=name)
    with console.step(1, 1, f"lock {place.name}"):
        if dry_run:
            new = resolve(load.read_wanted(place), settings=settings, progress=console)
        else:
            new = lock(place, settings=settings, progress=console)
    changes = differences(old, new) if old is not None else [f"locked {len(new.packages)} packages"]
    if console.as_json:
        console.data({"toolchain": place.name, "changes": changes, "written": not dry_run})
        return 0
    for line in changes:
        console.text(line)
    console.note(f"{len(changes)} changes{', nothing written' if dry_run else ''}" if changes else "nothing changed")
    return 0


@toolchain.command("build")
@_NAME
@building
@common
@verb
def toolchain_build(console: Console, settings: Settings, *, name: str, **_: Any) -> int:
    """Make a toolchain's build image, unless the engine has the one of this lock."""
    engine = _engine(console, settings)
    with console.step(1, 1, f"build image of {name}"):
        prepared = _prepare(console, settings, name, engine)
        console.update(prepared.toolchain.image_tag)
    if console.as_json:
        console.data({"toolchain": prepared.toolchain.name, "image": prepared.toolchain.image_tag,
                      "identity": prepared.image_id})
    else:
        console.text(f"{prepared.toolchain.image_tag}  {prepared.image_id}")
    return 0


@toolchain.command("export")
@_NAME
@click.argument("file", type=click.Path(path_type=Path))
@building
@common
@verb
def toolchain_export(console: Console, settings: Settings, *, name: str, file: Path, **_: Any) -> int:
    """Write a toolchain's build image to FILE, for a machine without network."""
    from kwdb_build.files import human_bytes
    from kwdb_build.toolchain.exchange import export

    engine = _engine(console, settings)
    with console.step(1, 2, f"build image of {name}"):
        prepared = _prepare(console, settings, name, engine)
        console.update(prepared.toolchain.image_tag)
    with console.step(2, 2, f"export to {file}"):
        stored = export(prepared.toolchain, file.absolute(), engine=engine)
        console.update(human_bytes(file.stat().st_size))
    if console.as_json:
        console.data({"toolchain": prepared.toolchain.name, "image": stored, "file": file.absolute()})
    else:
        console.text(f"{stored.tag} in {file.absolute()}")
    return 0


@toolchain.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@building
@common
@verb
def toolchain_import(console: Console, settings: Settings, *, file: Path, **_: Any) -> int:
    """Take a build image that `export` wrote."""
    from kwdb_build.toolchain.exchange import take

    engine = _engine(console, settings)
    known = _known(settings)
    if settings.toolchain:
        known.append(_load(settings.toolchain, settings))
    with console.step(1, 1, f"import {file}"):
        stored, serves = take(file.absolute(), engine=engine, known=known)
        console.update(stored.tag)
    if serves is None:
        console.note(
            f"no toolchain here has the lock of {stored.tag}: it will not be used. Both machines need the same "
            "kwdb-build (name a toolchain of your own with --toolchain)", style="yellow",
        )
    if console.as_json:
        console.data({"image": stored, "toolchain": serves.name if serves else None})
    else:
        console.text(f"{stored.tag}  {stored.identity}")
    return 0


@toolchain.command("prune")
@click.option("--keep", "own", multiple=True, metavar="FOLDER", help="A toolchain of your own that stays. Repeatable.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@common
@verb
def toolchain_prune(console: Console, settings: Settings, *, own: tuple[str, ...], dry_run: bool) -> int:
    """Remove base images, packages and wheels that no toolchain's lock names any more.

    All of it can be fetched again. Images that an engine has are not touched, nor what an opened bundle needs.
    """
    from kwdb_build.files import human_bytes
    from kwdb_build.toolchain import load, materials

    home = settings.home.absolute()
    named = (*own, *([settings.toolchain] if settings.toolchain else []))
    names = materials.needed(home, materials.folders_of(named, search=load.toolchains_root()))
    gone = materials.prune(home / "images", names, dry_run=dry_run)
    freed = sum(one.size_bytes for one in gone)
    if console.as_json:
        console.data({"dry_run": dry_run, "removed": gone, "freed_bytes": freed})
        return 0
    word = "would go" if dry_run else "gone"
    for kind in (materials.BASE, materials.PACKAGE, materials.WHEEL):
        if found := [one for one in gone if one.kind == kind]:
            size = human_bytes(sum(one.size_bytes for one in found))
            console.note(f"{word}: {len(found)} {kind}{'s' if len(found) > 1 else ''}, {size}")
    console.note(f"{human_bytes(freed)} {'would be freed' if dry_run else 'freed'}")
    return 0


def _known(settings: Settings) -> list[Toolchain]:
    from kwdb_build.toolchain import load

    root = load.toolchains_root()
    return [
        load.load(name, search=root, home=settings.home, base_image=settings.base_image) for name in load.names(root)
    ]


def _load(name: str, settings: Settings) -> Toolchain:
    from kwdb_build.toolchain import load

    return load.load(name, search=load.toolchains_root(), home=settings.home, base_image=settings.base_image)


def _engine(console: Console, settings: Settings) -> Any:
    from kwdb_build.cli.building import make_workshop

    return make_workshop(console, settings).engine


def _prepare(console: Console, settings: Settings, name: str, engine: Any) -> Any:
    from kwdb_build.files import private_directory
    from kwdb_build.toolchain.image import prepare_image

    log = private_directory(settings.home / "logs") / "image.log"
    return prepare_image(_load(name, settings), engine=engine, settings=settings, progress=console, log=log)
