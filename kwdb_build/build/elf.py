"""What ELF files need from the machine they run on, and the one change that we make to them.

The only room that imports pyelftools, lazily.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ORIGIN_LIB = "$ORIGIN/../lib"
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "riscv64": "EM_RISCV", "loongarch64": "EM_LOONGARCH"}
"""`uname -m` -> ELF machine."""

_VERSIONED = re.compile(r"^(?P<name>GLIBC|GLIBCXX|CXXABI)_(?P<number>\d+(?:\.\d+)*)$")


@dataclass(frozen=True, kw_only=True)
class ElfFacts:
    """One ELF file: its machine, the libraries it names, where it looks for them, and the symbol versions it needs.

    runpath holds DT_RUNPATH or the older DT_RPATH, split; rpath says which of both it was (DT_RPATH beats
    LD_LIBRARY_PATH). versions: 'GLIBC' -> highest number needed.
    """

    machine: str
    needed: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    rpath: bool = False
    versions: dict[str, tuple[int, ...]]


def read_elf(path: Path) -> ElfFacts:
    """Facts of one file; ValueError when it is no ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            tags = list(_dynamic_tags(elf))
            return ElfFacts(
                machine=str(elf["e_machine"]),
                needed=tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"),
                runpath=_search_path(tags),
                rpath=not any(tag.entry.d_tag == "DT_RUNPATH" for tag in tags)
                and any(tag.entry.d_tag == "DT_RPATH" for tag in tags),
                versions=highest(_needed_versions(elf)),
            )
    except ELFError as error:
        msg = f"{path} is no ELF file: {error}"
        raise ValueError(msg) from error


def provided_versions(path: Path) -> dict[str, tuple[int, ...]]:
    """Highest symbol versions that a library offers, such as GLIBCXX of libstdc++.so.6; ValueError for no ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerDefSection

    try:
        with path.open("rb") as stream:
            names = [
                str(auxiliary.name)
                for section in ELFFile(stream).iter_sections()
                if isinstance(section, GNUVerDefSection)
                for _, auxiliaries in section.iter_versions()
                for auxiliary in auxiliaries
            ]
    except ELFError as error:
        msg = f"{path} is no ELF file: {error}"
        raise ValueError(msg) from error
    return highest(names)


def highest(names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """['GLIBC_2.34', 'GLIBC_2.2.5', …] -> {'GLIBC': (2, 34)}; names without a number (GLIBC_PRIVATE) are left out."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        if match := _VERSIONED.match(name):
            number = tuple(int(part) for part in match["number"].split("."))
            found[match["name"]] = max(found.get(match["name"], ()), number)
    return found


def drop_build_paths(path: Path) -> tuple[str, ...]:
    """Make an executable look for its libraries by $ORIGIN/../lib first; return what it looked at before.

    KWDB's link puts the absolute build directory before `$ORIGIN/../lib`, so that an installed kwbase would load
    whatever lies in such a directory on the machine it runs on. The entry is made to point at the tail of its own
    string, which begins at `$ORIGIN/../lib`: no string is written, so nothing that shares its bytes can change.
    Nothing is done (and () returned) when it comes first already or is not there at all.
    """
    from elftools.elf.elffile import ELFFile

    with path.open("r+b") as stream:
        elf = ELFFile(stream)
        word = "Q" if elf.elfclass == 64 else "I"  # noqa: PLR2004
        order = "<" if elf.little_endian else ">"
        for offset, tag in _dynamic_entries(elf):
            if tag.entry.d_tag not in ("DT_RUNPATH", "DT_RPATH"):
                continue
            text = tag.runpath if tag.entry.d_tag == "DT_RUNPATH" else tag.rpath
            entries = text.split(":")
            if ORIGIN_LIB not in entries or entries[0] == ORIGIN_LIB:
                continue
            dropped = entries[: entries.index(ORIGIN_LIB)]
            skip = len((":".join(dropped) + ":").encode())
            stream.seek(offset + struct.calcsize(order + word))
            stream.write(struct.pack(order + word, tag.entry.d_val + skip))
            return tuple(dropped)
    return ()


def sections_of(data: bytes) -> dict[str, bytes]:
    """The contents of an ELF file's sections by name, decompressed; {} for what is no ELF file.

    Of two with one name, the first.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    found: dict[str, bytes] = {}
    try:
        for section in ELFFile(io.BytesIO(data)).iter_sections():
            if section.name and section["sh_type"] != "SHT_NOBITS":
                found.setdefault(section.name, section.data())
    except ELFError:
        return {}
    return found


def symbols_of(data: bytes) -> list[tuple[str, int, int]]:
    """(name, size, address) of all functions and objects that an ELF file names, in its own order; [] without any."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    try:
        return [
            (symbol.name, int(symbol["st_size"]), int(symbol["st_value"]))
            for section in ELFFile(io.BytesIO(data)).iter_sections() if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols() if symbol.name
        ]
    except ELFError:
        return []


def _dynamic_tags(elf: Any) -> Iterator[Any]:
    for _, tag in _dynamic_entries(elf):
        yield tag


def _dynamic_entries(elf: Any) -> Iterator[tuple[int, Any]]:
    """(offset in the file, tag) of each dynamic entry."""
    from elftools.elf.dynamic import DynamicSection

    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for index, tag in enumerate(section.iter_tags()):
                yield section["sh_offset"] + index * section["sh_entsize"], tag


def _search_path(tags: list[Any]) -> tuple[str, ...]:
    runpath = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
    rpath = [tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH"]
    # The loader ignores DT_RPATH where there is a DT_RUNPATH.
    return tuple(entry for text in (runpath or rpath) for entry in text.split(":") if entry)


def _needed_versions(elf: Any) -> Iterator[str]:
    from elftools.elf.gnuversions import GNUVerNeedSection

    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, auxiliaries in section.iter_versions():
                for auxiliary in auxiliaries:
                    yield str(auxiliary.name)
