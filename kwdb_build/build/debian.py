"""Debian package archives, read without dpkg: fields, files, and which of them a program needs to run."""

from __future__ import annotations

import lzma
import re
import sys
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from kwdb_build.errors import DependencyError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_ALTERNATIVE = re.compile(r"^\s*(?P<name>[a-z0-9][a-z0-9+.-]*)")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive: its fields ('Package', 'Version', 'Depends', …) and where it lies."""

    path: Path
    fields: dict[str, str]

    @property
    def name(self) -> str:
        """Its name."""
        return self.fields["Package"]


def read_package(path: Path) -> Package:
    """Fields of an archive; DependencyError when it is none."""
    with _tar(path, "control.tar") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "control":
                stream = tar.extractfile(member)
                return Package(path=path, fields=parse_fields(stream.read().decode() if stream else ""))
    raise DependencyError(f"{path} has no control file")


def parse_fields(text: str) -> dict[str, str]:
    """One stanza of a control file; continued lines are joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1].isspace() and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


@contextmanager
def contents(path: Path) -> Iterator[tarfile.TarFile]:
    """The files of an archive, to be read once in their order."""
    with _tar(path, "data.tar") as tar:
        yield tar


@contextmanager
def _tar(path: Path, wanted: str) -> Iterator[tarfile.TarFile]:
    try:
        with path.open("rb") as stream:
            name, size = _seek(stream, path, wanted)
            source: Any = _Part(stream, size)
            if name.endswith(".zst"):
                source = zstd.open(source)
            with tarfile.open(fileobj=source, mode="r|*") as tar:
                yield tar
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, zstd.ZstdError) as error:
        raise DependencyError(
            f"{path} is no readable Debian package", context=f"{type(error).__name__}: {error}",
            hint="remove it: it is fetched anew",
        ) from error


def _seek(stream: IO[bytes], path: Path, wanted: str) -> tuple[str, int]:
    """Go to the member of an ar file whose name begins with `wanted`; its name and size."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        msg = "no ar file"
        raise ValueError(msg)
    while len(header := stream.read(_HEADER_BYTES)) == _HEADER_BYTES:
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith(wanted):
            return name, size
        stream.seek(size + size % 2, 1)
    msg = f"no {wanted} in {path.name}"
    raise ValueError(msg)


class _Part:
    """The next `size` bytes of a stream, as a file."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """As a file does."""
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readable(self) -> bool:
        """As asked by the decompressor."""
        return True


def libraries_in(path: Path) -> frozenset[str]:
    """File names of the shared libraries that an archive holds, links included: 'libz.so.1', 'libz.so.1.2.13'."""
    with contents(path) as tar:
        return frozenset(
            name for member in tar
            if ".so" in (name := member.name.rsplit("/", 1)[-1]) and (member.isreg() or member.issym())
        )


def closure(packages: Mapping[str, Package], wanted: Iterable[str]) -> list[str]:
    """The wanted packages and all that they depend on, sorted; pure.

    Of alternatives the first that is there counts; what no package of the set provides (a virtual one, a helper for
    installing) is left out: the set was resolved whole, so what runs is in it.
    """
    provided = _provided(packages)
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for field in ("Pre-Depends", "Depends"):
            for group in packages[name].fields.get(field, "").split(","):
                names = [match["name"] for part in group.split("|") if (match := _ALTERNATIVE.match(part))]
                taken = next((provided[one] for one in names if one in provided), None)
                if taken is not None:
                    waiting.append(taken)
    return sorted(found)


def _provided(packages: Mapping[str, Package]) -> dict[str, str]:
    """Name, real or virtual -> package of the set."""
    found: dict[str, str] = {}
    for name, package in sorted(packages.items()):
        for part in package.fields.get("Provides", "").split(","):
            if match := _ALTERNATIVE.match(part):
                found.setdefault(match["name"], name)
    return found | {name: name for name in packages}


def holders(packages: Sequence[Package], libraries: Iterable[str]) -> dict[str, str]:
    """Library -> package that holds it; DependencyError names those that none of the packages has."""
    wanted = set(libraries)
    found: dict[str, str] = {}
    for package in packages:
        if wanted <= found.keys():
            break
        if package.name.startswith("lib") and not package.name.endswith("-dev"):
            found |= dict.fromkeys(libraries_in(package.path) & wanted, package.name)
    if missing := sorted(wanted - found.keys()):
        raise DependencyError(
            f"no package of the toolchain holds {', '.join(missing)}, which the build needs to run",
            hint="add the package to the toolchain and lock it again (`kwdb-build toolchain lock`)",
        )
    return found
