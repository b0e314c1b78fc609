"""What CMake found out about compilers and their tools, from one build for the next.

CMake looks at a compiler once for each build tree: it leaves build/CMakeFiles/<version>/CMake<language>Compiler.cmake
there, and reads that in its place when it is called again, if the tree's cache says that it has been called before. So
a fresh tree that has those files and the entries below is configured as a tree that was configured before, and all
else is found out anew. Seen with CMake 3.18 and 3.25: what is generated is the same to the byte.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kwdb_build.files import untrusted_lines

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

COMPILERS, CACHE = "build/CMakeFiles/*/CMakeC*Compiler.cmake", "build/CMakeCache.txt"
"""Below the source."""
_CACHE_BYTES = 4 << 20
_FOUND = re.compile(
    r"CMAKE_(?:ADDR2LINE|AR|DLLTOOL|LINKER|NM|OBJCOPY|OBJDUMP|RANLIB|READELF|STRIP|TAPI|EXECUTABLE_FORMAT"
    r"|PLATFORM_INFO_INITIALIZED|C(?:XX)?_COMPILER(?:_AR|_RANLIB)?)(?:-ADVANCED)?:\w+="
)
"""What project() itself enters for C and C++. Not the flags, which come from build files and environment each time."""


def reduce(cache: Path) -> None:
    """Leave in a CMakeCache.txt, which another user has made, what CMake found out about compilers."""
    lines = untrusted_lines(cache, limit_bytes=_CACHE_BYTES)
    cache.unlink()
    cache.write_text("".join(f"{line}\n" for line in of_compilers(lines)), encoding="utf-8")


def of_compilers(lines: Iterable[str]) -> list[str]:
    """The entries of a CMakeCache.txt that count, with what is said of them; pure."""
    found: list[str] = []
    said: list[str] = []
    for line in lines:
        if line.startswith("//"):
            said.append(line)
            continue
        if _FOUND.match(line):
            found += [*said, line]
        said = []
    return found
