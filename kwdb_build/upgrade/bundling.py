"""Making a bundle out of source and toolchain, and the settings of a run that uses one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import __version__
from kwdb_build.errors import BundleError, UsageError
from kwdb_build.files import full_disk_said, require_space
from kwdb_build.scratch import scratch_directory
from kwdb_build.source import bundle, packing, patches
from kwdb_build.source.client import GitClient
from kwdb_build.toolchain.exchange import IMAGE_FILE

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import SourceTree, Toolchain
    from kwdb_build.source.gather import SourceChoice
    from kwdb_build.upgrade.workshop import Workshop

_ROOM_BYTES = 3 << 30
_MAKING = ".making-"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished bundle: its contents and their digest."""

    contents: bundle.Contents
    digest: str


def create(
    workshop: Workshop, settings: Settings, console: Console, *, ref: str, choice: SourceChoice, target: Path,
    sign: Path | None, image: bool,
) -> Made:
    """Fetch, try the patches, make the build image, and write all of it into one file.

    Errors: those of a fetch, PatchError, those of an image, SpaceError; target then is as it was.
    """
    from kwdb_build.upgrade.workshop import fetched

    if target.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"no bundle can be written to {target}", hint="name a file in a directory that you may write to"
        )
    total = 3 if image else 2
    with console.step(1, total, f"fetch {ref}"):
        plain = replace(choice, patches=())
        tree = workshop.fetch(ref, url=settings.url, redirects=settings.redirect, choice=plain)
        patched = patches.apply_patches(
            tree, choice.patches, home=settings.home, progress=console, log=workshop.log("fetch")
        )
        toolchain = workshop.toolchain(patched)
        console.update(fetched(patched))
    if image:
        with console.step(2, total, f"build image of {toolchain.name}"):
            workshop.image(tree)
            toolchain = workshop.toolchain(tree)  # it may have got a new lock
            console.update(toolchain.image_tag)
    bundles = settings.home / "bundles"
    bundles.mkdir(parents=True, exist_ok=True)
    with console.step(total, total, f"write {target.name}"), scratch_directory(bundles, _MAKING) as place:
        require_space(place, _ROOM_BYTES if image else _ROOM_BYTES >> 3, "making of a bundle")
        with full_disk_said(settings.home, "making a bundle"):
            contents = _lay_out(
                workshop, tree, choice, toolchain, place, settings=settings, image=image, console=console
            )
        digest = bundle.write_bundle(contents, place, target, sign=sign, progress=console)
        console.update(f"{len(contents.members)} files")
    return Made(contents=contents, digest=digest)


def _lay_out(
    workshop: Workshop, tree: SourceTree, choice: SourceChoice, toolchain: Toolchain, place: Path, *,
    settings: Settings, image: bool, console: Console,
) -> bundle.Contents:
    from kwdb_build.toolchain.exchange import export
    from kwdb_build.toolchain.load import LOCK_FILE, WANTED_FILE

    git = GitClient(progress=console, log=workshop.log("bundle"))
    repositories = packing.pack(git, tree, place / "source")
    (place / "patches").mkdir()
    for patch in choice.patches:
        (place / "patches" / f"{patch.sha256}.patch").write_bytes(patches.load(patch, settings.home).data)
    (place / "toolchain").mkdir()
    shutil.copyfile(toolchain.path / WANTED_FILE, place / "toolchain" / WANTED_FILE)
    shutil.copyfile(toolchain.lock_path, place / "toolchain" / LOCK_FILE)
    if image:
        console.update("writing the build image")
        export(toolchain, place / "toolchain" / IMAGE_FILE, engine=workshop.engine)
    console.update("hashing")
    return bundle.Contents(
        format=bundle.FORMAT, made_by=__version__, source=replace(tree, path=Path("/")), repositories=repositories,
        patches=choice.patches, members=bundle.members_of(place),
        toolchain=bundle.BundledToolchain(
            name=toolchain.name, lock_digest=toolchain.lock_digest, image_tag=toolchain.image_tag,
            base_image=toolchain.base_image, image=image,
        ),
    )


def settings_with(settings: Settings, opened: bundle.Opened) -> Settings:
    """The settings of a run from a bundle: its toolchain, unless the person names another one.

    BundleError when the toolchain would be another one here than where the bundle was made.
    """
    held, folder = opened.contents.toolchain, opened.toolchain
    if held is None or folder is None or settings.toolchain:
        return settings
    from kwdb_build.toolchain import load

    changed = settings.model_copy(update={"toolchain": str(folder), "base_image": held.base_image})
    found = load.load(str(folder), search=load.toolchains_root(), home=settings.home, base_image=held.base_image)
    if found.lock_digest != held.lock_digest:
        raise BundleError(
            f"the bundle was made by kwdb-build {opened.contents.made_by}, whose build image is another one",
            context=f"toolchain {held.name}: {held.lock_digest[:16]} there, {found.lock_digest[:16]} here",
            hint="use here the very kwdb-build that made it, or make the bundle anew with this one "
            f"({__version__}): its Dockerfile.build is part of the image's identity",
        )
    return changed
