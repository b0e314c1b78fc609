"""What parts of a build depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kwdb_build.build.inputs import Dependencies, dependencies_digest, headers_digest
from kwdb_build.model import BuildOptions, SourceTree, Submodule, Version

RELEASE = BuildOptions(build_type="Release")
FILES = {
    "CMakeLists.txt": "project(KWDB)", "kwbase/Makefile": "build:", "kwbase/build/defs.mk": "x = 1",
    "kwbase/c-deps/rocksdb/db.cc": "int db;", "kwbase/c-deps/rocksdb-rebuild": "1", "kwdbts2/third_party/lz4/lz4.c": "",
    "kwbase/pkg/sql/a.go": "package sql", "kwdbts2/engine/e.cpp": "int e;", "kwdbts2/engine/e.h": "int e();",
    "qa/run.sh": "exit", "kwbase/vendor/x/Makefile": "all:", "README.md": "KWDB",
    "kwbase/Makefile_ent": "build:", "common/include/log.h": "void log();", "kwbase/pkg/roachpb/api.proto": "",
    "kwbase/vendor/gogo/gogo.proto": "", "kwbase/c-deps/rocksdb/include/db.h": "int db();",
}


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    path = tmp_path / "src/gitee.com/kwbasedb"
    for name, text in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return SourceTree(
        path=path, url="", ref="", commit="a" * 40, version=Version.parse("V3.2.0"), commit_time=86_400,
        submodules=(Submodule(path="kwbase/c-deps", url="", commit="c" * 40),),
    )


def both(tree: SourceTree, options: BuildOptions = RELEASE) -> Dependencies:
    return dependencies_digest(tree, options, headers_digest(tree.path))


def digest(tree: SourceTree, options: BuildOptions = RELEASE) -> str:
    return both(tree, options).wide


@pytest.mark.parametrize(("name", "narrow", "wide"), [
    ("kwdbts2/engine/e.h", False, True), ("common/include/log.h", False, True), ("common/include/new.hpp", False, True),
    ("kwbase/pkg/sql/a.go", False, False), ("kwbase/c-deps/rocksdb/include/db.h", True, True),
    ("kwbase/c-deps/rocksdb/include/new.h", True, True), ("kwbase/pkg/roachpb/api.proto", True, True),
    ("kwbase/vendor/gogo/gogo.proto", True, True), ("common/config.h.in", True, True), ("kwbase/Makefile", True, True),
    ("kwbase/pkg/sql/parser/sql.y", False, True), ("kwbase/c-deps/rocksdb/query.y", True, True),
    ("kwbase/vendor/go-libedit/help.h", True, True), ("kaiwudb_install/deploy.sh", False, False), ("kwbase/build/version.sh", True, True),
])
def test_kwdbs_own_headers_count_for_the_wide_digest_only(
    tree: SourceTree, name: str, *, narrow: bool, wide: bool
) -> None:
    before = both(tree)
    (tree.path / name).parent.mkdir(parents=True, exist_ok=True)
    (tree.path / name).write_text("changed")
    after = both(tree)
    assert (after.narrow != before.narrow, after.wide != before.wide) == (narrow, wide)
    assert "" not in {after.narrow, after.wide}
    assert after.narrow != after.wide


INCLUDES = [
    ('#include "../../../common/include/log.h"', False), ('#include "../../common/include/log.h"', False),
    ("#include <../../../common/include/log.h>", False), ('  # include "../../../../x.h"', False),
    ('#include_next "../../../x.h"', False), ("#import <../../../x.h>", False), ('#embed "../../../x.bin"', False),
    ("#include <../../kwdbts2/engine/none.h>", False), ("#include <../../common/none.h>", False),
    ("#include <../../build/kwdbts2/made.h>", False), ("#include <../../../../../kwbasedb/common/x.h>", False),
    ("#include <../../src/gitee.com/x.h>", False), ("#include <../../README.md>", False),
    ("#include <../../zlib/zlib.h>", True), ('#include "../../lib/made.h"', True),
    ('asm(".incbin \\"../../../x.bin\\"");', False), ('#define HEADER "../../../x.h"', False),
    ('#if __has_include("../../../x.h")', False), ('#include "/kwdb/src/gitee.com/kwbasedb/common/x.h"', False),
    ('#include "/kwdb/../kwdb/native/x.h"', False), ('#include "util/../../../../x.h"', False),
    ('#include "../db.cc"', True), ('#include "../generated.h"', True), ("#include <../zlib.h>", True),
    ('#include "../../rocksdb/db.cc"', True), ('#include "../../rocksdb/none.h"', True),
    ("#include <../../rocksdb/db.cc>", True), ('#include "../.."', True), ('#include "/usr/include/zlib.h"', True), ('#include "db.h"', True),
    ('open("../../../x.h")', True), ('#include "a..b/x.h"', True),
]


@pytest.mark.parametrize(("line", "narrow"), INCLUDES)
def test_a_source_that_could_climb_out_makes_all_headers_count(tree: SourceTree, line: str, *, narrow: bool) -> None:
    before = both(tree)
    (tree.path / "kwbase/c-deps/rocksdb/util").mkdir()
    (tree.path / "kwbase/c-deps/rocksdb/util/x.cc").write_text(f"int a;\n{line}\n")
    after = both(tree)
    assert bool(after.narrow) is narrow
    assert after.wide not in {"", before.wide}


def test_a_source_at_the_top_of_dependencies_climbs_out_by_one_step(tree: SourceTree) -> None:
    (tree.path / "kwbase/c-deps/x.c").write_text('#include "../pkg/x.h"\n')
    assert both(tree).narrow == ""
    assert both(tree).wide


@pytest.mark.parametrize(("name", "counts"), [
    ("CMakeLists.txt", True), ("kwbase/Makefile", True), ("kwbase/build/defs.mk", True),
    ("kwbase/c-deps/rocksdb/db.cc", True), ("kwbase/c-deps/rocksdb-rebuild", True),
    ("kwdbts2/third_party/lz4/lz4.c", True), ("kwdbts2/engine/e.h", True), ("kwbase/pkg/sql/a.go", False),
    ("kwdbts2/engine/e.cpp", False), ("qa/run.sh", False), ("kwbase/vendor/x/Makefile", False), ("README.md", False),
    ("kwbase/Makefile_ent", True),
])
def test_which_files_decide_what_bundled_libraries_become(tree: SourceTree, name: str, *, counts: bool) -> None:
    before = digest(tree)
    (tree.path / name).write_text("changed")
    assert (digest(tree) != before) is counts


def test_what_else_decides_about_bundled_libraries(tree: SourceTree) -> None:
    before = digest(tree)
    other = replace(tree, commit="b" * 40, commit_time=1, version=Version.parse("V3.2.1"))
    assert digest(other) == before, "a commit that changes nothing of theirs"
    moved = replace(tree, submodules=(Submodule(path="kwbase/c-deps", url="", commit="d" * 40),))
    vendor = replace(tree, submodules=(*tree.submodules, Submodule(path="kwbase/vendor", url="", commit="e" * 40)))
    assert digest(vendor) == before
    script = tree.path / "kwbase/c-deps/rocksdb-rebuild"
    digests = {
        before, digest(moved), digest(tree, BuildOptions(build_type="Debug")),
        digest(tree, BuildOptions(build_type="Release", make_variables=(("KWBASE_OSS", "ON"),))),
        digest(tree, BuildOptions(build_type="Release", cmake_variables=(("WITH_ASAN", "ON"),))),
        digest(replace(tree, version=Version.parse("V3.1.0"))),
        dependencies_digest(tree, RELEASE, headers_digest(tree.path), image="sha256:1"),
    }
    script.chmod(0o755)
    digests.add(digest(tree))
    script.unlink()
    script.symlink_to("rocksdb")
    digests.add(digest(tree))
    assert len(digests) == 9


@pytest.mark.parametrize(("link", "target", "known"), [
    ("kwbase/c-deps/foo", "../../kwdbts2/engine", False), ("kwbase/c-deps/foo", "rocksdb/db.cc", True),
    ("kwdbts2/third_party/zlib", "/usr/include/zlib", True), ("kwbase/c-deps/foo", "no/such/place", True),
    ("kwbase/c-deps/foo", "../../kwdbts2/third_party/lz4", True), ("kwbase/c-deps/a/b", "../../../common", False),
    ("kwbase/c-deps/foo", "/kwdb/src/gitee.com/kwbasedb/common", False),
])
def test_a_link_to_kwdbs_own_sources_makes_all_of_those_count(
    tree: SourceTree, link: str, target: str, *, known: bool
) -> None:
    (tree.path / link).parent.mkdir(exist_ok=True)
    (tree.path / link).symlink_to(target)
    assert (bool(both(tree).narrow), bool(both(tree).wide)) == (known, known)


def test_dependencies_that_lie_elsewhere_are_not_known(tree: SourceTree) -> None:
    (tree.path / "kwbase/c-deps").rename(tree.path / "deps")
    (tree.path / "kwbase/c-deps").symlink_to("../deps")
    assert both(tree) == Dependencies()


def test_headers_count_by_content_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "kwdbts2").mkdir()
    header = tmp_path / "kwdbts2" / "plan.h"
    header.write_text("#define ABI 1\n")
    (tmp_path / "kwdbts2" / "plan.cc").write_text("int a;\n")
    first = headers_digest(tmp_path)
    (tmp_path / "kwdbts2" / "plan.cc").write_text("int b;\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.h").write_text("not of the source\n")
    assert headers_digest(tmp_path) == first
    header.write_text("#define ABI 2\n")
    second = headers_digest(tmp_path)
    header.rename(tmp_path / "plan.h")
    assert len({first, second, headers_digest(tmp_path)}) == 3
