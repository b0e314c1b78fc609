"""What an #include could find, and what else ccache is not told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build.build.includes import Includes, includes_of

SYSTEM = frozenset({b"stdio.h", b"string.h", b"features.h", b"vector"})
FILES = {
    "kwdbts2/engine/e.cpp": '#include <vector>\n#include "plan.h"\n#  include "../mmap/map.h"\n#include "made.pb.h"\n',
    "kwdbts2/engine/plan.h": "#include <sys/string.h>\n#if __has_include(<charconv>)\n#endif\n",
    "kwdbts2/mmap/map.h": '#define LATER "mmap/later.h"\n',
    "kwdbts2/mmap/two.h": "", "common/two.h": "", "common/log.cpp": "#include <two.h>\n",
    "kwdbts2/third_party/lz4/lz4.h": "", "kwdbts2/third_party/lz4/lz4.c": '#include "lz4.h"\n',
    "kwbase/pkg/a.go": 'package a // #include "nobody.h"\n', "README.md": '#include "readme.h"\n',
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    return tmp_path


def write(source: Path, name: str, text: str = "") -> None:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text(text)


def found(source: Path) -> Includes:
    return includes_of(source, SYSTEM)


@pytest.mark.parametrize("name", [
    "kwdbts2/engine/new.h", "common/map2.h", "common/engine/e.cpp", "common/x/map.h", "README.zh.md",
    "nobody.h", "readme.h", "kwdbts2/other/later.h", "kwbase/pkg/b.go", ".git/plan.h",
])
def test_a_new_file_that_no_include_could_find_instead_of_another_is_nothing_new(source: Path, name: str) -> None:
    before = found(source)
    write(source, name, "// other contents are what ccache sees by itself\n")
    assert found(source) == before


@pytest.mark.parametrize("name", [
    "kwdbts2/plan.h",  # there is one already, and either ends with what the #include says
    "common/x/mmap/map.h",  # so it does when the #include climbs first
    "common/third/two.h",  # a third one
    "common/features.h",  # the image's own headers could find it
    "common/vector", "x/string.h", "kwdbts2/sys/string.h",
    "common/made.pb.h",  # what the build makes
    "common/charconv",  # __has_include said no, and the image has none
    "common/mmap/later.h",  # by a macro
    "kwdbts2/third_party/lz4/unheard_of.h",  # all of the libraries'
    "kwdbts2/anything.h.in", "common/anything.proto",  # what becomes a header of another name
])
def test_a_new_file_that_an_include_could_find_is(source: Path, name: str) -> None:
    before = found(source)
    write(source, name)
    assert found(source).order != before.order


@pytest.mark.parametrize(("beside", "text"), [
    # The build makes such a header.
    ("kwdbts2/CMakeLists.txt", 'file(WRITE ${CMAKE_BINARY_DIR}/plan.h "")'), ("kwbase/Makefile", "echo > $(OUT)/two.h"),
    ("common/make.sh", "cat > plan.h"),
    # By an ending that no header has.
    ("common/log.cpp", '#include "impl.tmpl"'),
])
def test_what_the_build_or_an_odd_file_has_to_do_with_headers(source: Path, beside: str, text: str) -> None:
    write(source, "common/impl.tmpl", '#include "deep.h"\n')
    write(source, "common/one/deep.h")
    before = found(source)
    write(source, beside, text)
    named = found(source)
    assert named.order != before.order or "impl" in text
    write(source, "common/two/deep.h")
    assert (found(source).order != named.order) is ("impl" in text)


def test_what_an_odd_file_embeds(source: Path) -> None:
    write(source, "kwdbts2/blob.inc2", '.incbin "blob"')
    assert found(source).depth == "all", "nobody includes it"
    write(source, "kwdbts2/blob.S", '#include "blob.inc2"')
    assert found(source).depth == ""


def test_a_name_that_only_the_preprocessor_knows_makes_all_count(source: Path) -> None:
    write(source, "common/log.cpp", "#define NAME\n#  include NAME\n")
    before = found(source)
    write(source, "kwdbts2/engine/new.h")
    assert found(source).order != before.order


def test_by_a_link_to_a_directory_a_file_has_other_paths(source: Path) -> None:
    write(source, "common/log.cpp", '#include "mmap/map.h"')
    (source / "kwdbts2/mmap_link").symlink_to("mmap")
    before = found(source)
    write(source, "kwdbts2/elsewhere/map.h")
    assert found(source).order != before.order


def test_a_file_that_moved_or_went_and_a_link_to_a_directory(source: Path) -> None:
    before = found(source)
    (source / "common/two.h").rename(source / "kwdbts2/engine/two.h")
    moved = found(source)
    (source / "kwdbts2/engine/two.h").unlink()
    gone = found(source)
    (source / "kwdbts2/include").symlink_to("engine")
    linked = found(source)
    (source / "kwdbts2/include").unlink()
    (source / "kwdbts2/include").symlink_to("mmap")
    assert len({one.order for one in (before, moved, gone, linked, found(source))}) == 5


def test_without_a_list_of_the_images_headers_each_new_one_counts(source: Path) -> None:
    before = includes_of(source, None)
    write(source, "kwdbts2/engine/new.cpp")
    assert includes_of(source, None) == before
    write(source, "kwdbts2/engine/new.h")
    assert includes_of(source, None).order != before.order


def test_a_source_can_be_anywhere_and_files_be_of_any_order(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    for name, text in reversed(FILES.items()):
        write(other, name, text)
    assert found(other) == found(source)


@pytest.mark.parametrize(("name", "reads"), [
    ("kwdbts2/engine/e.cpp", True), ("kwdbts2/engine/plan.h", True), ("kwdbts2/version.h.in", True),
    ("common/make_version.sh", True), ("README.md", False),
    ("kwdbts2/third_party/lz4/lz4.c", True),
])
def test_whether_a_source_reads_the_name_of_the_commit(source: Path, name: str, *, reads: bool) -> None:
    assert not found(source).reads_commit
    write(source, name, "x = GIT_COMMIT_ID;\n")
    assert found(source).reads_commit is reads


@pytest.mark.parametrize(("name", "text", "reads"), [
    ("CMakeLists.txt", r'add_definitions(-DGIT_COMMIT_ID=\"${GIT_COMMIT_ID}\")', False),  # KWDB's own
    ("CMakeLists.txt", 'if (NOT DEFINED GIT_COMMIT_ID)\n  string(REPLACE "" GIT_COMMIT_ID "${GIT_COMMIT_ID}")', False),
    ("CMakeLists.txt", "add_definitions(-DVERSION=GIT_COMMIT_ID)", True), ("x.mk", 'F += -DV=\\"GIT_COMMIT_ID', True),
    ("common/log.cpp", "#define JOIN(a, b) a##b\nJOIN(GIT_COMMIT, _ID)", True),
])
def test_the_name_of_the_commit_by_another_name(source: Path, name: str, text: str, *, reads: bool) -> None:
    write(source, name, text)
    assert found(source).reads_commit is reads


@pytest.mark.parametrize(("name", "text", "depth"), [
    ("kwdbts2/engine/e.cpp", 'asm(".incbin \\"logo\\"");', ""), ("kwdbts2/a.S", '  .include "macros.s"', ""),
    ("kwdbts2/third_party/lz4/lz4.c", 'asm(".incbin \\"logo\\"");', "own"),
    ("kwdbts2/third_party/lz4/lz4.h", '.INCBIN "logo"', ""),
    ("kwdbts2/engine/e.cpp", 'set.include("x");', "all"), ("README.md", ".incbin", "all"),
])
def test_what_an_assembler_reads_is_not_on_a_compilers_list(source: Path, name: str, text: str, depth: str) -> None:
    assert found(source).depth == "all"
    write(source, name, text)
    assert found(source).depth == depth


def test_files_that_are_no_text_or_cannot_be_read(source: Path) -> None:
    before = found(source)
    (source / "kwdbts2/engine/binary.h").write_bytes(bytes(range(256)) * 40)
    (source / "kwdbts2/engine/broken.h").symlink_to("nowhere")
    (source / "kwdbts2/engine/\udcff.h").write_text("")
    assert found(source) == before
