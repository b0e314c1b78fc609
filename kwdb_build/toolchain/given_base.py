"""A base image that the user gives: by name from a registry (or the engine's own), or as a file."""

from __future__ import annotations

import re
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.errors import DependencyError

if TYPE_CHECKING:
    from kwdb_build.engine.base import Engine

_REFERENCE = re.compile(
    r"^(?:(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/)?(?P<path>[a-z0-9]+(?:(?:[./]|_{1,2}|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
_IMAGE_ID = re.compile(r"^sha256:[0-9a-f]{64}$")


def is_file(base_image: str) -> bool:
    """Whether the setting names a file, and no image of a registry."""
    return base_image.startswith(("/", "./", "../", "~"))


def identity(base_image: str) -> str:
    """What makes one base differ from another: a file's content, else the name as it was given.

    DependencyError for a file that cannot be read, or what is no name of an image.
    """
    if not is_file(base_image):
        _require_reference(base_image)
        return base_image
    path = Path(base_image).expanduser().absolute()
    try:
        info = path.stat()
        return f"sha256:{_digest(path, info.st_size, info.st_mtime_ns)}"
    except OSError as error:
        raise DependencyError(
            f"the base image {path} cannot be read: {error.strerror}", hint="mend the setting base_image"
        ) from error


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # a changed file is read again
    return files.sha256_of(path)


def _require_reference(base_image: str) -> None:
    if not (_REFERENCE.match(base_image) or _IMAGE_ID.match(base_image)):
        raise DependencyError(
            f"{base_image!r} is no name of an image",
            hint="NAME@sha256:DIGEST, NAME:TAG, or a file by a path that begins with / or ./ (setting base_image)",
        )


def is_pinned(base_image: str) -> bool:
    """Whether it can only ever mean the same bytes."""
    return is_file(base_image) or "sha256:" in base_image


def from_registry(base_image: str, registry: str) -> str:
    """The name with the registry's prefix, unless it names a registry itself."""
    match = _REFERENCE.match(base_image)
    host = match["host"] if match else None
    named = host is not None and ("." in host or ":" in host or host == "localhost")
    if not registry or named or _IMAGE_ID.match(base_image):
        return base_image
    return f"{registry.rstrip('/')}/{base_image}"


def take_file(base_image: str, *, engine: Engine) -> str:
    """Give a file to the engine and return its tag there: a root file system's tar, or a `docker save` archive.

    Errors: DependencyError when it is neither, EngineError when the engine does not take it.
    """
    path = Path(base_image).expanduser().absolute()
    tag = f"kwdb-build/base:{identity(base_image).removeprefix('sha256:')[:16]}"
    if engine.image_id(tag) is not None:
        return tag
    try:
        with tarfile.open(path) as tar:
            names = {member.name.removeprefix("./").split("/")[0] for member in tar}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DependencyError(
            f"the base image {path} is no tar archive", context=str(error),
            hint="give the tar of a Debian root file system, or what `docker save NAME:TAG` wrote (not zstd)",
        ) from error
    if "manifest.json" in names:
        return engine.load_image(path).tag
    if not {"etc", "var"} <= names:
        raise DependencyError(
            f"the base image {path} holds neither a root file system nor an image",
            context=f"at its top: {', '.join(sorted(names)[:10])}",
            hint="give the tar of a Debian root file system, or what `docker save NAME:TAG` wrote",
        )
    engine.import_base(path, tag, environment={})
    return tag
