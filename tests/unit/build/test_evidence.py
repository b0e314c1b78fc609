"""What is believed of a build of KWDB's bundled libraries: objects and archives of a real compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kwdb_build.build.evidence import looked_outside
from kwdb_build.build.sight import OUTSIDE, SEEN

SOURCE = "src/gitee.com/kwbasedb"
LONG = "a_source_with_a_rather_long_name.cc.o"
WRITTEN = ("db.o", LONG, "CMakeFiles/z.dir/z.c.o", "libz.so.1.2", "protoc-3.12")


class Build:
    """What a build left: places of dependencies, what was noted, and the source as it was before."""

    def __init__(self, place: Path) -> None:
        self.kept, self.scratch, self.tree = place / "kept", place / "scratch", place / "tree"
        self.native = self.kept / "native/rocksdb"
        for path in (self.native / "CMakeFiles/z.dir", self.scratch, self.tree / "common", self.tree / "kwbase/c-deps"):
            path.mkdir(parents=True)
        (self.tree / "common/log.h").write_text("void log();\n")
        (self.native / "x.c").write_text("int x;\nint main(void) { return x; }\n")
        for name in ("db.o", LONG, "CMakeFiles/z.dir/z.c.o"):
            self.run("gcc", "-c", "x.c", "-o", name)
        self.run("gcc", "-shared", "-fPIC", "x.c", "-o", "libz.so.1.2")
        self.run("gcc", "x.c", "-o", "protoc-3.12")
        self.run("ar", "rcs", "librocksdb.a", "db.o", LONG)
        (self.native / "lib").mkdir()
        shutil.copy(self.native / "libz.so.1.2", self.native / "lib")
        (self.native / "lib/libz.so").symlink_to("libz.so.1.2")
        self.note(*WRITTEN)

    def run(self, *argv: str) -> None:
        subprocess.run(argv, cwd=self.native, check=True)

    def note(self, *names: str) -> None:
        (self.scratch / SEEN).write_text("".join(f"/kwdb/native/rocksdb/{name}\n" for name in names))

    def outside(self) -> str:
        return looked_outside(self.kept, self.scratch, self.tree)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_what_compilers_were_seen_to_write_is_believed(build: Build) -> None:
    assert build.outside() == ""
    (build.native / "CMakeFiles/3.25").mkdir()
    shutil.copy(build.native / "protoc-3.12", build.native / "CMakeFiles/3.25/CMakeDetermineCompilerABI_C.bin")
    build.run("ar", "rcsT", "libthin.a", "db.o", LONG)
    assert build.outside() == "", "what CMake asks a compiler with, and an archive that only names its members"


@pytest.mark.parametrize("name", WRITTEN)
def test_what_nobody_saw_written_is_not(build: Build, name: str) -> None:
    build.note(*(other for other in WRITTEN if other != name))
    assert name.rpartition("/")[2] in build.outside()


@pytest.mark.parametrize("name", ["db.o", LONG])
@pytest.mark.parametrize("thin", [True, False])
def test_a_member_of_an_archive_counts_when_its_object_is_gone(build: Build, name: str, *, thin: bool) -> None:
    if thin:
        (build.native / "librocksdb.a").unlink()
        build.run("ar", "rcsT", "librocksdb.a", "db.o", LONG)
    (build.native / name).unlink()
    assert build.outside() == ""
    build.note(*(other for other in WRITTEN if other != name))
    assert build.outside() == f"nobody saw the compiler write {name} of native/rocksdb/librocksdb.a"


def test_an_object_of_another_library_is_not_this_one(build: Build) -> None:
    other = build.kept / "native/other"
    other.mkdir()
    shutil.copy(build.native / "db.o", other)
    assert build.outside() == "nobody saw the compiler write native/other/db.o"


def test_nothing_is_believed_without_notes(build: Build) -> None:
    (build.scratch / SEEN).unlink()
    assert "nobody saw" in build.outside()


def test_a_damaged_archive_is_not_believed(build: Build) -> None:
    os.truncate(build.native / "librocksdb.a", (build.native / "librocksdb.a").stat().st_size - 20)
    with (build.native / "librocksdb.a").open("ab") as stream:
        stream.write(b"x" * 40)
    assert "a damaged part of native/rocksdb/librocksdb.a" in build.outside()


def test_a_call_that_could_look_outside_says_it_for_all(build: Build) -> None:
    (build.scratch / OUTSIDE).write_text("../../common\nmore\n")
    assert build.outside() == "a compiler could look at ../../common"


@pytest.mark.parametrize("name", [SEEN, OUTSIDE])
def test_notes_that_are_something_else_are_refused(build: Build, name: str) -> None:
    (build.scratch / name).unlink(missing_ok=True)
    (build.scratch / name).symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=name):
        build.outside()


@pytest.mark.parametrize(("target", "trusted"), [
    (f"/kwdb/{SOURCE}/common", False), (f"../../{SOURCE}/common", False), ("../..", False), ("/kwdb/install/x", False),
    (f"/kwdb/{SOURCE}/kwbase/c-deps/x", True), ("../other", True), ("/usr/include", True),
    (f"/kwdb/{SOURCE}/build/kwdbts2/third_party/lz4", True), (f"/kwdb/{SOURCE}/build/kwdbts2/x", False),
])
def test_links_to_kwdbs_own_files(build: Build, target: str, *, trusted: bool) -> None:
    (build.native / "link").symlink_to(target)
    assert (build.outside() == "") is trusted


@pytest.mark.parametrize(("name", "text", "trusted"), [
    ("a.o.d", f"a.o: /kwdb/{SOURCE}/common/log.h", False), (".deps/a.Po", f"/kwdb/{SOURCE}/kwdbts2/e.h:", False),
    ("compiler_depend.internal", f" /kwdb/{SOURCE}/kwbase/c-deps/x.h\n /kwdb/{SOURCE}/kwbase/x.h\n", False),
    ("up.d", f"x.o: \\\n /kwdb/{SOURCE}/../../../native/kwdbts2/third_party/include/port.h \\\n x.cc\n", True),
    ("out.d", f"x.o: /kwdb/native/../{SOURCE}/common/x.h\n", False),
    ("colon.d", f"/kwdb/{SOURCE}/kwbase/x.h:\n", False),
    ("a.o.d", f"a.o: /kwdb/{SOURCE}/kwbase/c-deps/x.h /kwdb/native/a.h /usr/include/a.h", True),
    ("a.o.d", f"a.o: /kwdb/{SOURCE}/kwdbts2/third_party/x.h /kwdb/{SOURCE}/build/kwdbts2/third_party/x/y.h", True),
    ("CMakeCache.txt", f"/kwdb/{SOURCE}/common", True),
])
def test_what_a_compilation_read_is_believed(build: Build, name: str, text: str, *, trusted: bool) -> None:
    (build.native / name).parent.mkdir(exist_ok=True)
    (build.native / name).write_text(text)
    assert (build.outside() == "") is trusted


def test_a_header_of_kwdbs_own_that_was_copied_there(build: Build) -> None:
    (build.native / "log.h").write_text("void log(); // of rocksdb's own\n")
    assert build.outside() == ""
    shutil.copy(build.tree / "common/log.h", build.native)
    for bring in ("kwbase/c-deps", "kwbase/vendor/go-libedit"):
        assert build.outside() == "native/rocksdb/log.h is a header of KWDB's own"
        (build.tree / bring).mkdir(parents=True, exist_ok=True)
        brought = Path(shutil.copy(build.tree / "common/log.h", build.tree / bring))
        assert build.outside() == "", "what they bring along is part of their digest"
        brought.unlink()
