"""A stored build as a container image: in a file, or in the engine."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from kwdb_build.build import image as images
from kwdb_build.errors import UsageError
from kwdb_build.files import full_disk_said
from kwdb_build.scratch import scratch_directory
from kwdb_build.source.partial import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.image import MadeImage, User
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Artifact, Toolchain
    from kwdb_build.upgrade.workshop import Workshop


def make_image(
    workshop: Workshop, artifact: Artifact, *, tag: str, user: User, output: Path | None, settings: Settings,
    console: Console,
) -> MadeImage:
    """Write the archive to output, for which no engine is needed, or load it into the engine under tag.

    Errors: as of build.image.make_image; SpaceError for output, EngineError for the engine.
    """
    work = settings.home / "work"
    work.mkdir(parents=True, exist_ok=True)
    toolchain = toolchain_of(artifact, settings, console)

    def write(stream: IO[bytes]) -> MadeImage:
        return images.make_image(
            workshop.store, artifact, toolchain, stream, place=work, tag=tag, user=user, settings=settings,
            progress=console, log=workshop.log("image"),
        )

    if output is not None:
        with whole_file(output, begins=images.BEGINS, others=(work,)) as stream:
            return write(stream)
    engine = workshop.engine  # before the work, as it may not answer
    with full_disk_said(work, "making the image"), scratch_directory(work, ".image-") as scratch:
        with (scratch / "image.tar").open("w+b") as stream:
            made = write(stream)
        console.update("loading it into the engine")
        engine.load_image(scratch / "image.tar")
    return made


def toolchain_of(artifact: Artifact, settings: Settings, console: Console) -> Toolchain:
    """The toolchain that a build was made with, by the name in its key, or the one of the settings.

    Another lock of the same distribution serves as well (newer packages of the same release), and is told. UsageError
    when there is no such toolchain here.
    """
    from kwdb_build.toolchain import load

    wanted = artifact.key.inputs.get("toolchain", {})
    name = settings.toolchain or str(wanted.get("name", ""))
    if not name:
        raise UsageError("the build does not say which toolchain made it", hint="name one with --toolchain")
    found = load.load(name, search=load.toolchains_root(), home=settings.home, base_image=settings.base_image)
    if found.lock_digest != wanted.get("lock"):
        console.note(
            f"toolchain {found.name} has another lock here than the build was made with: the image gets its packages",
            style="yellow",
        )
    return found
