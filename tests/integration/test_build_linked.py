"""Programs that a build installs to generate code with, as KWDB's `bin/.bootstrap` does, with the image's own Go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build import recipe as recipes
from kwdb_build.build.includes import Includes
from kwdb_build.build.shims import FILES as SHIM_FILES
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.files import sha256_of
from kwdb_build.model import SOURCE_SUFFIX, SourceTree, Toolchain, Version

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.engine.docker import DockerEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

UID = 65532 if os.geteuid() == 0 else os.geteuid()
GID = 65532 if os.geteuid() == 0 else os.getegid()
MAIN = 'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("NAME\\n") }\n'
FILES = {
    "pkg/cmd/optgen/main.go": MAIN.replace("NAME", "optgen"),
    "pkg/cmd/execgen/main.go": MAIN.replace("NAME", "execgen"),
    "pkg/words/words.go": "package words\n",
}
INSTALL = "cd kwbase && GOBIN=$PWD/bin GOFLAGS= go install -x ./pkg/cmd/optgen ./pkg/cmd/execgen"
TOOLS = {"optgen", "execgen"}


@dataclass
class Builds:
    """Each call is a build in a fresh working copy; what they keep lies in `linked`."""

    engine: DockerEngine
    toolchain: Toolchain
    place: Path
    count: int = 0

    @property
    def linked(self) -> Path:
        return self.place / "cache" / "go" / "linked"

    @property
    def kept(self) -> dict[str, list[str]]:
        return {path.name: sorted(child.name for child in path.iterdir()) for path in self.linked.glob("*")}

    def __call__(
        self, changed: dict[str, str] | None = None, *, script: str = INSTALL, lasting: bool = True, code: int = 0,
    ) -> tuple[set[str], dict[str, str], list[str]]:
        """Which programs were linked, the sha256 of what lies in bin, and all that was said."""
        self.count += 1
        place = self.place / str(self.count)
        source = place / "gopath" / SOURCE_SUFFIX
        for name, text in (FILES | (changed or {})).items():
            (source / "kwbase" / name).parent.mkdir(parents=True, exist_ok=True)
            (source / "kwbase" / name).write_text(text)
        tree = SourceTree(
            path=source, url="", ref="", commit="0" * 40, version=Version.parse("V3.2.1"), commit_time=1_750_500_000,
            submodules=(),
        )
        shims, scratch, cache = place / "shims", place / "scratch", self.place / "cache"
        for directory in (shims, scratch, cache / "go"):
            directory.mkdir(parents=True, exist_ok=True)
        for path in (*(place / "gopath").rglob("*"), place / "gopath", scratch, cache, cache / "go"):
            os.chown(path, UID, GID)
        for name, text in SHIM_FILES.items():
            (shims / name).write_text(text)
            (shims / name).chmod(0o755)
        includes = Includes(order="0" * 64, reads_commit=False, embeds=False, libraries_embed=False) if lasting else None
        lines: list[str] = []
        result = self.engine.run(
            RunSpec(
                image=self.toolchain.image_tag, uid=UID, gid=GID, workdir=str(recipes.SOURCE),
                argv=(str(recipes.SHIMS / "enter"), "022", "sh", "-euc", script),
                environment=recipes.environment(tree, self.toolchain.environment, "0" * 64, includes),
                mounts=(
                    Mount(source=place / "gopath", target=str(recipes.GOPATH), read_only=False),
                    Mount(source=shims, target=str(recipes.SHIMS)),
                    Mount(source=scratch, target=str(recipes.SCRATCH), read_only=False),
                    Mount(source=cache, target=str(recipes.CACHE), read_only=False),
                ),
            ),
            on_line=lines.append, log=place / "log",
        )
        assert result.returncode == code, lines
        linked = {name for name in TOOLS for line in lines if "/exe/a.out" in line and line.endswith(f"/bin/{name}")}
        return linked, {path.name: sha256_of(path) for path in (source / "kwbase/bin").glob("*")}, lines


@pytest.fixture
def build(engine: DockerEngine, mini_toolchain: Toolchain, tmp_path: Path) -> Builds:
    return Builds(engine, mini_toolchain, tmp_path)


def test_a_fresh_tree_does_not_link_what_an_earlier_build_linked(build: Builds) -> None:
    linked, first, _ = build()
    assert linked == TOOLS == first.keys()
    assert build.kept == {name: [digest] for name, digest in first.items()}
    linked, again, said = build(script=f"{INSTALL}; bin/optgen")
    assert (linked, again) == (set(), first)
    assert "optgen" in said


def test_a_program_whose_source_changed_is_linked_anew_and_takes_the_others_place(build: Builds) -> None:
    _, first, _ = build()
    changed = {"pkg/cmd/optgen/main.go": MAIN.replace("NAME", "another")}
    linked, second, said = build(changed, script=f"{INSTALL}; bin/optgen")
    assert linked == {"optgen"}
    assert "another" in said
    assert second["execgen"] == first["execgen"]
    assert build.kept == {name: [digest] for name, digest in second.items()}


def test_a_program_that_was_damaged_is_linked_anew(build: Builds) -> None:
    """Go itself reads no more of it than the build ID."""
    _, first, _ = build()
    kept = build.linked / "optgen" / first["optgen"]
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    linked, again, _ = build()
    assert (linked, again) == ({"optgen"}, first)
    assert sha256_of(kept) == first["optgen"]


def test_what_go_was_not_asked_to_link_is_not_left_behind(build: Builds) -> None:
    _, first, _ = build()
    (build.linked / "words").mkdir()
    kept = build.linked / "optgen" / first["optgen"]
    (build.linked / "words" / kept.name).write_bytes(kept.read_bytes())
    assert build(script="cd kwbase && GOBIN=$PWD/bin go install -x ./pkg/words")[:2] == (set(), {})


def test_a_build_without_caches_keeps_and_takes_nothing(build: Builds) -> None:
    assert build(lasting=False)[0] == TOOLS
    assert build.kept == {}
    assert build()[0] == TOOLS
    assert build(lasting=False)[0] == TOOLS


def test_a_full_or_forbidden_cache_fails_no_build(build: Builds) -> None:
    _, first, _ = build(script=f"mkdir /kwdb-cache/go/linked; chmod 555 /kwdb-cache/go/linked; {INSTALL}")
    assert first.keys() == TOOLS
    assert build.kept == {}


def test_other_calls_of_go_pass_through_with_their_exit_codes(build: Builds) -> None:
    _, found, said = build(script="go version; cd kwbase; go build -o bin/x ./pkg/cmd/optgen; go env GOPATH")
    assert found.keys() == {"x"}
    assert any(line.startswith("go version go") for line in said)
    assert str(recipes.GOPATH) in said
    assert build.kept == {}
    build({"pkg/cmd/optgen/main.go": "package main\n\nfunc main() { broken }\n"}, code=1)
    assert build.kept == {}
    _, _, said = build(script="KWDB_PATH=/bin go version", code=127)
    assert "go: not in /bin" in said
