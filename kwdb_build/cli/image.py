"""A container image of a build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, source, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Artifact
    from kwdb_build.upgrade.workshop import Workshop


@click.command()
@click.argument("what", metavar="KEY|REF")
@click.option("--tag", "-t", required=True, metavar="NAME:TAG", help="Name of the image.")
@click.option("--output", "-o", type=click.Path(path_type=Path),
              help="Write FILE.tar (docker load, podman load, OCI layout) instead of loading it into the engine.")
@click.option("--user", default="0", metavar="UID[:GID]", help="Who the server runs as (default: root, as published).")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@source
@building
@common
@verb
def image(
    console: Console, settings: Settings, *, what: str, tag: str, output: Path | None, user: str, force: bool,
    **options: Any,
) -> int:
    """Make a container image of a stored build (KEY, its beginning, a version, `latest`), or of REF, built when needed.

    Layout and entry are those of KWDB's published image. No registry is asked; the same build gives the same image.
    """
    from kwdb_build.build.image import parse_tag, parse_user
    from kwdb_build.cli.building import build_artifact, make_workshop
    from kwdb_build.cli.bundle import opened
    from kwdb_build.files import human_bytes
    from kwdb_build.source.partial import require_free
    from kwdb_build.upgrade.imaging import make_image

    name, who = parse_tag(tag), parse_user(user)
    if output is not None:
        output = output.absolute()
        require_free(output, force=force)
    settings = opened(console, settings, options)
    workshop = make_workshop(console, settings)
    artifact, steps = _stored(workshop, what), 1
    if artifact is None:
        steps = 4
        _, artifact = build_artifact(workshop, console, settings, what, steps, options)
    with console.step(steps, steps, f"image of {artifact.version}"):
        made = make_image(workshop, artifact, tag=name, user=who, output=output, settings=settings, console=console)
        console.update(f"{human_bytes(made.size_bytes)}, {len(made.packages)} packages")
    if console.as_json:
        console.data({"image": made, "key": artifact.key.digest, "file": output})
    else:
        console.text(f"{made.image_id}  {output or made.tag}")
    return 0


def _stored(workshop: Workshop, name: str) -> Artifact | None:
    """The stored build of that name, None when there is none; AmbiguousArtifactError when there are several."""
    from kwdb_build.build.store import AmbiguousArtifactError, UnknownArtifactError

    try:
        return workshop.store.resolve(name)
    except AmbiguousArtifactError:
        raise
    except UnknownArtifactError:
        return None
