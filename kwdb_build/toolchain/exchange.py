"""Build images as files: made on a machine with network, taken on one without.

The file is `docker save`'s archive, which every engine reads and whose layers are checked by their digests. Its tag
names the lock, so that an image can only ever stand for the lock that it was made from.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kwdb_build.errors import AccessError, DependencyError, SpaceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.console import Progress
    from kwdb_build.engine.base import Engine, StoredImage
    from kwdb_build.model import Toolchain


IMAGE_FILE = "image.tar"
"""Where a toolchain folder may hold its image (one that came out of a bundle does)."""


def take_along(toolchain: Toolchain, *, engine: Engine, progress: Progress) -> None:
    """Give the engine the image that lies in the toolchain's folder, when it lacks it; DependencyError for another."""
    path = toolchain.path / IMAGE_FILE
    if not path.is_file() or engine.image_id(toolchain.image_tag) is not None:
        return
    progress.update(f"loading the build image {toolchain.image_tag}")
    loaded = engine.load_image(path)
    if loaded.tag != toolchain.image_tag:
        raise DependencyError(
            f"{path} holds another image than the toolchain's", context=f"{loaded.tag}\n{toolchain.image_tag} wanted",
            hint="make the bundle again",
        )


def export(toolchain: Toolchain, path: Path, *, engine: Engine) -> StoredImage:
    """Write a toolchain's image, which the engine must have; the file appears only when it is whole.

    Errors: SpaceError, AccessError or UsageError when it cannot be written there, EngineError.
    """
    try:
        return engine.export_image(toolchain.image_tag, path)
    except OSError as error:
        kind = {errno.ENOSPC: SpaceError, errno.EDQUOT: SpaceError, errno.EACCES: AccessError, errno.EPERM: AccessError}
        raise kind.get(error.errno or 0, UsageError)(
            f"the image cannot be written to {path}: {error.strerror}", hint="choose another place"
        ) from error


def take(path: Path, *, engine: Engine, known: Iterable[Toolchain]) -> tuple[StoredImage, Toolchain | None]:
    """Give an exported image to the engine; and the toolchain here that has the same lock, None when none has.

    Errors: DependencyError when there is no such file, EngineError when it is damaged.
    """
    if not path.is_file():
        raise DependencyError(f"there is no file {path}", hint="`kwdb-build toolchain export NAME FILE` makes one")
    loaded = engine.load_image(path)
    return loaded, next((toolchain for toolchain in known if toolchain.image_tag == loaded.tag), None)
