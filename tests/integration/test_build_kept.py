"""Kept libraries, as the makes of KWDB see them: an ExternalProject of CMake, a configure script, and `uptodate`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from git import Repo

from kwdb_build.build import kept
from kwdb_build.build import recipe as recipes
from kwdb_build.build.inputs import Headers
from kwdb_build.build.recipe import GOPATH, SOURCE
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.files import sha256_of
from kwdb_build.model import SOURCE_SUFFIX, SourceTree, Toolchain, Version
from tests.notes import Notes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

COMMIT_TIME = 1_750_500_000
UID = 65532 if os.geteuid() == 0 else os.geteuid()
GID = 65532 if os.geteuid() == 0 else os.getegid()
LIBRARY = f"{SOURCE_SUFFIX}/build/kwdbts2/libkwdbts2.so"
# The shapes are those of KWDB's kwdbts2/CMakeLists.txt and kwbase/Makefile (V3.2.1).
FILES = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.6)
project(KWDB C CXX)
set(NATIVE /kwdb/native)
add_subdirectory(kwdbts2)
""",
    "kwdbts2/CMakeLists.txt": """\
project(KWDBTS2)
include(ExternalProject)
ExternalProject_Add(
  lz4_src
  SOURCE_DIR ${PROJECT_SOURCE_DIR}/third_party/lz4-1.9.3
  PREFIX ${CMAKE_CURRENT_BINARY_DIR}/third_party/lz4-1.9.3
  BINARY_DIR ${CMAKE_CURRENT_BINARY_DIR}/third_party/lz4-1.9.3/build
  BUILD_IN_SOURCE 0
  CONFIGURE_COMMAND
    cmake -DCMAKE_INSTALL_PREFIX=${NATIVE}/kwdbts2/third_party -S ${PROJECT_SOURCE_DIR}/third_party/lz4-1.9.3
  BUILD_COMMAND $(MAKE) -j2
)
add_library(kwdbts2 SHARED engine.cpp)
target_include_directories(kwdbts2 PRIVATE ${NATIVE}/kwdbts2/third_party/include)
target_link_libraries(kwdbts2 ${NATIVE}/kwdbts2/third_party/lib/liblz4.a)
add_dependencies(kwdbts2 lz4_src)
""",
    "kwdbts2/engine.cpp": "#include <lz4.h>\nint engine() { return lz4(); }\n",
    "kwdbts2/third_party/lz4-1.9.3/CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.6)
project(LZ4 CXX)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
execute_process(COMMAND git log -1 --format=%h OUTPUT_VARIABLE REVISION ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
add_definitions(-DREVISION="${REVISION}")
add_library(lz4 STATIC lz4.cpp)
install(TARGETS lz4 DESTINATION lib)
install(FILES lz4.h DESTINATION include)
""",
    "kwdbts2/third_party/lz4-1.9.3/lz4.h": "int lz4();\n",
    "kwdbts2/third_party/lz4-1.9.3/lz4.cpp": '#include "lz4.h"\nint lz4() { return 1; }\n',
    "Makefile": """\
JEMALLOC_SRC_DIR := kwbase/c-deps/jemalloc
JEMALLOC_DIR := /kwdb/native/jemalloc
build: $(JEMALLOC_DIR)/libjemalloc.a
	cmake -B build -S .
	$(MAKE) -C build
$(JEMALLOC_SRC_DIR)/configure: $(JEMALLOC_SRC_DIR)/configure.ac
	@echo making configure
	cp $< $@ && chmod +x $@
$(JEMALLOC_DIR)/Makefile: kwbase/c-deps/jemalloc-rebuild $(JEMALLOC_SRC_DIR)/configure
	@echo configuring jemalloc
	rm -rf $(JEMALLOC_DIR) && mkdir -p $(JEMALLOC_DIR)
	cd $(JEMALLOC_DIR) && $(CURDIR)/$(JEMALLOC_SRC_DIR)/configure
$(JEMALLOC_DIR)/libjemalloc.a: $(JEMALLOC_DIR)/Makefile .ALWAYS_REBUILD
	@test -e $@ && ! find $(JEMALLOC_SRC_DIR) -type f -exec sh -c 'test "$$0" -nt "$$1" || echo "$$1"' $@ {} \\; \
		| grep -q . \
		|| { echo building jemalloc; $(MAKE) -C $(JEMALLOC_DIR); }
.PHONY: .ALWAYS_REBUILD build
""",
    "kwbase/c-deps/jemalloc-rebuild": "1\n",
    "kwbase/c-deps/jemalloc/configure.ac": """\
#!/bin/sh
printf 'libjemalloc.a: je.o\\n\\tar rcs $@ $^\\nje.o: /kwdb/src/gitee.com/kwbasedb/kwbase/c-deps/jemalloc/je.c\\n\\t$(CC) -c $<\\n' > Makefile
""",
    "kwbase/c-deps/jemalloc/je.c": "int je(void) { return 2; }\n",
}
WORK = ("Performing configure", "Building CXX object CMakeFiles/lz4", "making configure", "configuring jemalloc",
        "building jemalloc")


def fresh(gopath: Path) -> SourceTree:
    for name, text in FILES.items():
        path = gopath / SOURCE_SUFFIX / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    repository = Repo.init(gopath / SOURCE_SUFFIX)
    repository.git.add(all=True)
    with repository.config_writer() as config:
        config.set_value("user", "name", "somebody").set_value("user", "email", "somebody@example.org")
    commit = repository.index.commit("all", skip_hooks=True)
    for path in [*gopath.rglob("*"), gopath]:
        os.chown(path, UID, GID)
        os.utime(path, (COMMIT_TIME, COMMIT_TIME))
    return SourceTree(
        path=gopath / SOURCE_SUFFIX, url="", ref="", commit=commit.hexsha, version=Version.parse("V3.2.1"),
        commit_time=COMMIT_TIME, submodules=(),
    )


def make(engine: DockerEngine, toolchain: Toolchain, tree: SourceTree, log: Path) -> list[str]:
    """Run make in the image; which work was done."""
    lines: list[str] = []
    environment = recipes.environment(
        tree, toolchain.environment, Headers(contents="c" * 64, names="d" * 64), use_ccache=False
    )
    result = engine.run(
        RunSpec(
            image=toolchain.image_tag, argv=("make",), uid=UID, gid=GID, workdir=str(SOURCE),
            mounts=(Mount(source=tree.gopath, target=str(GOPATH), read_only=False),),
            environment={name: value for name, value in environment.items() if name.startswith(("GIT_", "PATH"))},
        ),
        on_line=lines.append, log=log,
    )
    assert result.returncode == 0, lines
    assert any("Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/engine.cpp.o" in line for line in lines)
    return [work for work in WORK if any(work in line for line in lines)]


def test_makes_find_kept_libraries_up_to_date(engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path) -> None:
    first, second, log = fresh(tmp_path / "first"), fresh(tmp_path / "second"), tmp_path / "log"
    notes = Notes()
    assert make(engine, mini_toolchain, first, log) == list(WORK)
    before = {name: sha256_of(first.gopath / name) for name in ("native/jemalloc/libjemalloc.a", LIBRARY)}
    fetched = fresh(tmp_path / "fetched")
    kept.keep(
        tmp_path / "kept", "d" * 32, first.gopath, replace(first, path=fetched.path), notes, limit_bytes=1 << 30
    )
    assert notes.notes == [], "nothing has this commit in it, although it asks git"
    assert kept.take(
        tmp_path / "kept", "d" * 32, second.gopath, uid=UID, gid=GID, newer_than=COMMIT_TIME, progress=notes
    )
    assert make(engine, mini_toolchain, second, log) == []
    assert {name: sha256_of(second.gopath / name) for name in before} == before
