"""A base image that the user gives: by name from a registry (or the engine's own), or as a file."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.engine.base import RunSpec
from kwdb_build.errors import DependencyError, EngineError
from kwdb_build.model import DebianPackage
from kwdb_build.toolchain.probe import PROBE_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Toolchain

_REFERENCE = re.compile(
    r"^(?:(?P<host>[A-Za-z0-9.-]+(?::\d+)?)/)?(?P<path>[a-z0-9]+(?:(?:[./]|_{1,2}|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
_IMAGE_ID = re.compile(r"^sha256:[0-9a-f]{64}$")
_LIST = (
    "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\n",
)
_LIST_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class GivenBase:
    """What is known of the base image that a build's image was made from.

    uri says where it came from; digest (sha256:…, '' when it cannot be told) is that of what `digest_of` names: a file,
    a manifest of a registry, or the image as the engine has it. packages are those of the build image that no lock
    names; None when they could not be read.
    """

    name: str
    uri: str
    digest: str = ""
    digest_of: str = ""
    packages: tuple[DebianPackage, ...] | None = None


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


def describe(toolchain: Toolchain, image: str, registry: str, *, engine: Engine, log: Path) -> GivenBase | None:
    """What build documents tell of a toolchain's given base, of which `image` was made; None without one.

    Never an error: what cannot be told is left out, and the documents say so.
    """
    if not toolchain.base_image:
        return None
    packages = _unlocked_packages(toolchain, image, engine=engine, log=log)
    if is_file(toolchain.base_image):
        path = Path(toolchain.base_image).expanduser().absolute()
        try:
            digest = identity(toolchain.base_image)
        except DependencyError:  # gone since the image was made
            digest = ""
        return GivenBase(name=path.name, uri=path.as_uri(), digest=digest, digest_of="file", packages=packages)
    name = from_registry(toolchain.base_image, registry)
    digest, digest_of = engine.image_id(name) or "", "image"
    if not digest:
        digest, digest_of = name[name.find("sha256:"):] if is_pinned(name) else "", "manifest"
    return GivenBase(
        name=toolchain.base_image, uri=f"docker://{name}", digest=digest, digest_of=digest_of if digest else "",
        packages=packages,
    )


def _unlocked_packages(
    toolchain: Toolchain, image: str, *, engine: Engine, log: Path
) -> tuple[DebianPackage, ...] | None:
    lines: list[str] = []
    spec = RunSpec(
        image=image, argv=_LIST, environment={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, uid=PROBE_ID,
        gid=PROBE_ID, name="packages", timeout_s=_LIST_TIMEOUT_S,
    )
    try:
        result = engine.run(spec, on_line=lines.append, log=log)
    except EngineError:
        return None
    found = parse_packages(lines)
    if result.returncode != 0 or not found:
        return None
    locked = {entry.name for entry in toolchain.debian}
    return tuple(entry for entry in found if entry.name not in locked)


def parse_packages(lines: Iterable[str]) -> tuple[DebianPackage, ...]:
    """Installed packages from what dpkg-query shows, sorted; their archives' digests are not known. Pure."""
    cells = [line.rstrip("\r\n").split("\t") for line in lines]
    found = {
        DebianPackage(name=cell[1], version=cell[2], architecture=cell[3], sha256="")
        for cell in cells if len(cell) == 4 and cell[0][1:2] == "i"  # noqa: PLR2004 - installed, on hold too
    }
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.architecture)))
