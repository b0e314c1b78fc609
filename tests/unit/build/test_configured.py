from __future__ import annotations

import os
from pathlib import Path

import pytest

from kwdb_build.build import configured

CACHE = """\
# This is the CMakeCache file.

########################
# EXTERNAL cache entries
########################

//Path to a program.
CMAKE_AR:FILEPATH=/usr/bin/ar

//Choose the type of build
CMAKE_BUILD_TYPE:STRING=Release

//A wrapper around 'ar' adding the appropriate '--plugin' option
// for the GCC compiler
CMAKE_C_COMPILER_AR:FILEPATH=/usr/bin/gcc-ar-12

//Flags used by the CXX compiler
CMAKE_CXX_FLAGS:STRING=-march=native

//Value Computed by CMake
KWDB_REVISION:STATIC=0123456789

//ADVANCED property for variable: CMAKE_AR
CMAKE_AR-ADVANCED:INTERNAL=1
//Executable file format
CMAKE_EXECUTABLE_FORMAT:INTERNAL=ELF
//Platform information initialized
CMAKE_PLATFORM_INFO_INITIALIZED:INTERNAL=1
CMAKE_CXX_COMPILER:STRING=/scratch/tools/c++
MY_CMAKE_AR:FILEPATH=/x
"""


def test_only_what_cmake_found_of_compilers_is_left(tmp_path: Path) -> None:
    cache = tmp_path / "CMakeCache.txt"
    cache.write_text(CACHE)
    configured.reduce(cache)
    assert cache.read_text().splitlines() == [
        "//Path to a program.", "CMAKE_AR:FILEPATH=/usr/bin/ar",
        "//A wrapper around 'ar' adding the appropriate '--plugin' option", "// for the GCC compiler",
        "CMAKE_C_COMPILER_AR:FILEPATH=/usr/bin/gcc-ar-12",
        "//ADVANCED property for variable: CMAKE_AR", "CMAKE_AR-ADVANCED:INTERNAL=1",
        "//Executable file format", "CMAKE_EXECUTABLE_FORMAT:INTERNAL=ELF",
        "//Platform information initialized", "CMAKE_PLATFORM_INFO_INITIALIZED:INTERNAL=1",
        "CMAKE_CXX_COMPILER:STRING=/scratch/tools/c++",
    ]


def test_what_the_builds_user_made_of_it_is_not_followed_waited_for_or_read_without_end(tmp_path: Path) -> None:
    precious, cache = tmp_path / "precious", tmp_path / "CMakeCache.txt"
    precious.write_text("CMAKE_AR:FILEPATH=x")
    cache.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        configured.reduce(cache)
    assert precious.read_text() == "CMAKE_AR:FILEPATH=x"
    cache.unlink()
    os.mkfifo(cache)
    with pytest.raises(OSError, match="is no regular file"):
        configured.reduce(cache)
    cache.unlink()
    cache.touch()
    os.truncate(cache, 1 << 40)
    with pytest.raises(OSError, match=r"has more than 4\.0 MiB"):
        configured.reduce(cache)
