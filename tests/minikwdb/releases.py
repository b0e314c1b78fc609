"""What each release of minikwdb changes in the tree under source/: small edits, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

RELEASE_GO = "kwbase/pkg/release/release.go"
FORMAT_H = "kwdbts2/src/ts_format.h"
PLAN_H = "kwdbts2/include/kwdbts2/ts_plan.h"

# The layout of V1.0.0. A V1.0.0 library that is given a later plan takes a number for a pointer.
_OLD_PLAN = """  const TsValue* values;
  TsCursor** cursor;  // scan: receives the cursor
  uint64_t table_id;
  uint64_t row_id;   // delete and tag update: which row
  uint64_t value_count;
"""
_NEW_PLAN = """  uint64_t table_id;
  uint64_t row_id;   // delete and tag update: which row
  TsCursor** cursor;  // scan: receives the cursor
  const TsValue* values;
  uint64_t value_count;
"""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Replace the only occurrence of `old` in a file."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """One commit of the main repository, made of source/main with edits.

    `parent` names the tag before it; `generation` says which commit of each submodule it pins.
    """

    tag: str
    parent: str | None
    message: str
    edits: tuple[Edit, ...] = ()
    generation: int = 1
    annotated: bool = True
    missing_submodule: bool = False


def _format(newest: int, suffix: str = ".blk") -> tuple[Edit, ...]:
    return (
        Edit(path=FORMAT_H, old="kNewestUpdateType = 11", new=f"kNewestUpdateType = {newest}"),
        Edit(path=FORMAT_H, old='kBlockSuffix = ".blk"', new=f'kBlockSuffix = "{suffix}"'),
    )


_V1_0_0 = (
    *_format(10),
    Edit(path=PLAN_H, old="#define TS_PLAN_ABI 2", new="#define TS_PLAN_ABI 1"),
    Edit(path=PLAN_H, old=_NEW_PLAN, new=_OLD_PLAN),
    Edit(path=RELEASE_GO, old='SyncPeriodDefault = "0s"', new='SyncPeriodDefault = "10s"'),
    Edit(path=RELEASE_GO, old="ShowsActiveTime = false", new="ShowsActiveTime = true"),
)

RELEASES: tuple[Release, ...] = (
    Release(tag="V1.0.0", parent=None, message="Release V1.0.0", edits=_V1_0_0, generation=0, annotated=False),
    # A tag beside V1.1.0 that is not V1.1.0, as in KWDB's own repository.
    Release(tag="V1.1.0_old", parent="V1.0.0", message="Prepare V1.1.0", edits=_V1_0_0, annotated=False),
    Release(tag="V1.1.0", parent="V1.1.0_old", message="Release V1.1.0: store format 11"),
    Release(
        tag="V1.2.0",
        parent="V1.1.0",
        message="Release V1.2.0: does not start",
        edits=(
            Edit(
                path=RELEASE_GO,
                old='StartError = ""',
                new='StartError = "failed to start server: the metadata of this release is incomplete"',
            ),
        ),
    ),
    Release(
        tag="V1.3.0",
        parent="V1.2.0",
        message="Release V1.3.0: another block format, old time series read as none",
        edits=_format(12, ".seg"),
    ),
    Release(
        tag="V2.0.0",
        parent="V1.3.0",
        message="Release V2.0.0: a new generation",
        edits=_format(13, ".tsb"),
    ),
    # Broken ones, and a patched one, each beside V1.1.0.
    Release(
        tag="V1.1.1",
        parent="V1.1.0",
        message="Release V1.1.1: C++ does not compile",
        edits=(Edit(path="kwdbts2/src/engine.cpp", old="groups_.push_back(", new="groups.push_back("),),
    ),
    Release(
        tag="V1.1.2",
        parent="V1.1.0",
        message="Release V1.1.2: Go does not compile",
        edits=(Edit(path="kwbase/pkg/server/stop.go", old="func (s *Server) drainOnly() {", new="func drainOnly() {"),),
    ),
    Release(
        tag="V1.1.3",
        parent="V1.1.0",
        message="Release V1.1.3: pins a commit that nobody has",
        missing_submodule=True,
    ),
    Release(
        tag="V1.1.4",
        parent="V1.1.0",
        message="Release V1.1.4: install forgets a library",
        edits=(
            Edit(
                path="common/CMakeLists.txt",
                old="install(TARGETS common LIBRARY DESTINATION lib)\n",
                new="",
            ),
        ),
    ),
    # What differs between two builds of it gets past every rule of KWDB's own build: a clock that is not `date`, the
    # name of the machine, and the order of names in a directory.
    Release(
        tag="V1.1.5",
        parent="V1.1.0",
        message="Release V1.1.5: cannot be built twice alike",
        edits=(
            Edit(
                path="kwbase/Makefile",
                old="$(shell date -u '+%Y/%m/%d %H:%M:%S')",
                new="$(shell bash -c 'printf \"%(%Y/%m/%d %H:%M:%S)T\" -1')",
            ),
            Edit(
                path="common/CMakeLists.txt",
                old="add_library(common SHARED src/file_util.cpp src/log.cpp)\n",
                new='execute_process(COMMAND uname -n OUTPUT_VARIABLE BUILD_HOST OUTPUT_STRIP_TRAILING_WHITESPACE)\n'
                'file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/host.cpp\n'
                '    "extern const char kBuildHost[];\\nconst char kBuildHost[] = \\"built on ${BUILD_HOST}\\";\\n")\n'
                "add_library(common SHARED src/file_util.cpp src/log.cpp ${CMAKE_CURRENT_BINARY_DIR}/host.cpp)\n",
            ),
            Edit(
                path="kwdbts2/CMakeLists.txt",
                old="    src/engine.cpp src/table.cpp src/tag_file.cpp src/ts_api.cpp src/ts_version.cpp src/vgroup.cpp)\n",
                new="    ${FOUND_SOURCES})\n",
            ),
            Edit(
                path="kwdbts2/CMakeLists.txt",
                old="add_library(kwdbts2 SHARED\n",
                new="execute_process(COMMAND find src -name *.cpp OUTPUT_VARIABLE FOUND_SOURCES\n"
                "    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})\n"
                'string(REGEX REPLACE "[\\n]+" ";" FOUND_SOURCES "${FOUND_SOURCES}")\n'
                'list(FILTER FOUND_SOURCES EXCLUDE REGEX "^$")\n'
                "add_library(kwdbts2 SHARED\n",
            ),
        ),
    ),
    Release(
        tag="V1.1.6",
        parent="V1.1.0",
        message="Release V1.1.6: one C++ file changed",
        edits=(Edit(path="kwdbts2/src/ts_version.cpp", old="namespace kwdbts {", new="namespace kwdbts {\n\nextern const int kPatched = 6;"),),
    ),
    Release(
        tag="patched",
        parent="V1.1.0",
        message="A local patch on V1.1.0",
        edits=(Edit(path="kwbase/pkg/sql/system.go", old='{"Channel", "unknown"}', new='{"Channel", "patched"}'),),
    ),
)
