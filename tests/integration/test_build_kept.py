"""Kept libraries, as the makes of KWDB see them: an ExternalProject of CMake, a configure script, and `uptodate`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from git import Repo

from kwdb_build.build import kept
from kwdb_build.build import recipe as recipes
from kwdb_build.build.inputs import dependencies_digest, headers_digest
from kwdb_build.build.recipe import GOPATH, SOURCE
from kwdb_build.build.shims import FILES as SHIM_FILES
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.files import sha256_of
from kwdb_build.model import SOURCE_SUFFIX, BuildOptions, SourceTree, Toolchain, Version
from tests.notes import Notes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

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
    "kwdbts2/engine.cpp": '#include <lz4.h>\n#include "bound.h"\nint engine() { return lz4() + LIMIT; }\n',
    "kwdbts2/bound.h": "#define LIMIT 1000\n",
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
	cmake -B build -S $(CURDIR)
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
WORK = ("Detecting CXX compiler ABI info", "Performing configure", "Building CXX object CMakeFiles/lz4", "making configure", "configuring jemalloc",
        "building jemalloc")


# As KWDB has them: brpc, named first, does not say that it needs gflags.
UNSAID_ORDER = {
    "kwdbts2/CMakeLists.txt": FILES["kwdbts2/CMakeLists.txt"].replace("add_library(kwdbts2 ", """\
ExternalProject_Add(
  brpc
  SOURCE_DIR ${PROJECT_SOURCE_DIR}/third_party/brpc-1.9.0
  PREFIX ${CMAKE_CURRENT_BINARY_DIR}/third_party/brpc-1.9.0
  CMAKE_ARGS -DCMAKE_PREFIX_PATH=${NATIVE}/kwdbts2/third_party
  INSTALL_COMMAND true
)
ExternalProject_Add(
  gflags_src
  SOURCE_DIR ${PROJECT_SOURCE_DIR}/third_party/gflags-2.2.2
  PREFIX ${CMAKE_CURRENT_BINARY_DIR}/third_party/gflags-2.2.2
  CONFIGURE_COMMAND sleep 3
  BUILD_COMMAND true
  INSTALL_COMMAND mkdir -p ${NATIVE}/kwdbts2/third_party/include
  COMMAND cp <SOURCE_DIR>/gflags.h ${NATIVE}/kwdbts2/third_party/include
)
add_library(kwdbts2 """).replace("add_dependencies(kwdbts2 lz4_src)", "add_dependencies(kwdbts2 brpc gflags_src lz4_src)"),
    "kwdbts2/third_party/brpc-1.9.0/CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.6)
project(brpc CXX)
find_path(GFLAGS gflags.h)
if(NOT GFLAGS)
  message(FATAL_ERROR "Could not find gflags")
endif()
""",
    "kwdbts2/third_party/gflags-2.2.2/gflags.h": "int gflags();\n",
}


LEVEL = "kwdbts2/third_party/lz4-1.9.3"
LOOKS_OUT = {
    f"{LEVEL}/CMakeLists.txt": FILES[f"{LEVEL}/CMakeLists.txt"] + (
        "target_include_directories(lz4 PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/../..)\n"
    ),
    f"{LEVEL}/lz4.cpp": '#include "lz4.h"\n#include <bound.h>\nint lz4() { return LIMIT; }\n',
}
OTHER_COMPILER = {
    f"{LEVEL}/CMakeLists.txt": "set(CMAKE_CXX_COMPILER /usr/bin/g++)\n" + FILES[f"{LEVEL}/CMakeLists.txt"],
}


def fresh(gopath: Path, changed: dict[str, str] | None = None) -> SourceTree:
    for name, text in (FILES | (changed or {})).items():
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


class Builder:
    """Builds by the stand-ins that a build has, each time in a fresh working copy."""

    def __init__(self, engine: DockerEngine, toolchain: Toolchain, place: Path) -> None:
        self._engine, self._toolchain, self._place = engine, toolchain, place
        self._count = 0
        self.kept = place / "kept"
        self.notes = Notes()

    def __call__(
        self, changed: dict[str, str] | None = None, *, warm: bool = True, jobs: int = 1
    ) -> tuple[list[str], dict[str, str]]:
        """Which work was done for the libraries, and the bytes of what came out."""
        self._count += 1
        place = self._place / str(self._count)
        tree, fetched = fresh(place / "gopath", changed), fresh(place / "fetched", changed)
        headers = headers_digest(fetched.path)
        digests = dependencies_digest(fetched, BuildOptions(build_type="Release"), headers)
        if warm:
            for digest in filter(None, (digests.narrow, digests.wide)):
                if kept.take(
                    self.kept, digest, tree.gopath, uid=UID, gid=GID, newer_than=COMMIT_TIME, progress=self.notes
                ):
                    break
        work = self._make(tree, headers, place, jobs)
        names = ("native/jemalloc/libjemalloc.a", "native/kwdbts2/third_party/lib/liblz4.a", LIBRARY)
        found = {Path(name).name: sha256_of(tree.gopath / name) for name in names}
        if warm:
            kept.keep(self.kept, digests, tree.gopath, place / "scratch", fetched, self.notes, limit_bytes=1 << 30)
            assert self.notes.notes == [], "nothing has this commit in it, although it asks git"
        return work, found

    def _make(self, tree: SourceTree, headers: str, place: Path, jobs: int) -> list[str]:
        lines: list[str] = []
        shims, scratch = place / "shims", place / "scratch"
        shims.mkdir()
        scratch.mkdir()
        os.chown(scratch, UID, GID)
        for name, text in SHIM_FILES.items():
            (shims / name).write_text(text)
            (shims / name).chmod(0o755)
        result = self._engine.run(
            RunSpec(
                image=self._toolchain.image_tag, uid=UID, gid=GID,
                argv=(str(recipes.SHIMS / "enter"), "022", "make", f"-j{jobs}"), workdir=str(SOURCE),
                environment=recipes.environment(tree, self._toolchain.environment, headers, None),
                mounts=(
                    Mount(source=tree.gopath, target=str(GOPATH), read_only=False),
                    Mount(source=shims, target=str(recipes.SHIMS)),
                    Mount(source=scratch, target=str(recipes.SCRATCH), read_only=False),
                ),
            ),
            on_line=lines.append, log=place / "log",
        )
        assert result.returncode == 0, lines
        assert any("Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/engine.cpp.o" in line for line in lines)
        return [work for work in WORK if any(work in line for line in lines)]


@pytest.fixture
def build(engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path) -> Builder:
    return Builder(engine, mini_toolchain, tmp_path)


def test_makes_find_kept_libraries_up_to_date(build: Builder) -> None:
    work, first = build()
    assert work == list(WORK)
    work, second = build()
    assert work == []
    assert second == first


@pytest.mark.parametrize("jobs", [1, 4])
def test_what_kwdbs_cmake_leaves_to_chance_comes_in_order(build: Builder, jobs: int) -> None:
    work, _ = build(UNSAID_ORDER, jobs=jobs)
    assert work == list(WORK)


def test_a_tree_that_cmake_takes_for_configured_is_configured_as_a_fresh_one(build: Builder, tmp_path: Path) -> None:
    def generated(number: int) -> dict[str, str]:
        root = tmp_path / str(number) / "gopath" / SOURCE_SUFFIX / "build"
        return {
            str(path.relative_to(root)): sha256_of(path) for path in root.rglob("*")
            if path.name in {"CMakeCache.txt", "flags.make", "link.txt", "build.make", "cmake_install.cmake", "Makefile",
                             "Makefile2", "CMakeCXXCompiler.cmake", "CMakeCCompiler.cmake"}
            and "third_party" not in path.relative_to(root).parts
        }

    build()
    assert build()[0] == []
    assert build(warm=False)[0] == list(WORK)
    warm, cold = generated(2), generated(3)
    assert {"CMakeCache.txt", "kwdbts2/CMakeFiles/kwdbts2.dir/flags.make"} < cold.keys()
    assert warm == cold


def test_a_header_of_kwdbs_own_has_no_library_built_anew_that_cannot_see_it(build: Builder) -> None:
    _, first = build()
    changed = {"kwdbts2/bound.h": "#define LIMIT 2000\n", "common/more.h": "int more();\n"}
    work, second = build(changed)
    assert work == []
    assert {name for name in second if second[name] != first[name]} == {"libkwdbts2.so"}
    work, cold = build(changed, warm=False)
    assert work == list(WORK)
    assert second == cold


@pytest.mark.slow
def test_a_library_that_includes_a_header_of_kwdbs_own_is_built_anew_for_it(build: Builder) -> None:
    work, first = build(LOOKS_OUT)
    assert work == list(WORK)
    work, again = build(LOOKS_OUT)
    assert (work, again) == ([], first)
    changed = {**LOOKS_OUT, "kwdbts2/bound.h": "#define LIMIT 2000\n"}
    work, second = build(changed)
    assert work == list(WORK)
    assert {name for name in second if second[name] != first[name]} == {"liblz4.a", "libkwdbts2.so"}
    assert second == build(changed, warm=False)[1]


@pytest.mark.slow
def test_a_compiler_that_nobody_sees_is_not_trusted(build: Builder) -> None:
    assert build(OTHER_COMPILER)[0] == list(WORK)
    assert build(OTHER_COMPILER)[0] == []
    assert build({**OTHER_COMPILER, "kwdbts2/bound.h": "#define LIMIT 2000\n"})[0] == list(WORK)
