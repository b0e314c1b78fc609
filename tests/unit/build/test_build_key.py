from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kwdb_build.build.key import build_key
from kwdb_build.errors import UsageError
from kwdb_build.model import BuildOptions, SourceTree, Submodule, Toolchain, Version

TREE = SourceTree(
    path=Path("/somewhere/src/gitee.com/kwbasedb"), url="https://example.invalid/kwdb.git", ref="V3.1.0",
    commit="a" * 40,
    version=Version.parse("V3.1.0"), commit_time=1_770_000_000,
    submodules=(
        Submodule(path="kwbase/vendor", url="u1", commit="b" * 40),
        Submodule(path="kwbase/c-deps", url="u2", commit="c" * 40),
    ),
)
TOOLCHAIN = Toolchain(
    name="t", path=Path("/t"), distribution="debian", release="12", architecture="amd64", base_packages=(),
    packages=(), locked_packages=(), wheels=(), environment={}, serves="", lock_digest="d" * 64,
)
OPTIONS = BuildOptions(make_variables=(("A", "1"), ("B", "2")))


def digest(tree: SourceTree = TREE, toolchain: Toolchain = TOOLCHAIN, options: BuildOptions = OPTIONS) -> str:
    return build_key(tree, toolchain, options).digest


def test_what_does_not_decide_bytes_does_not_decide_the_key() -> None:
    same = [
        digest(tree=dataclasses.replace(TREE, path=Path("/other/src/gitee.com/kwbasedb"), url="file:///x", ref="main")),
        digest(tree=dataclasses.replace(TREE, submodules=TREE.submodules[::-1])),
        digest(toolchain=dataclasses.replace(TOOLCHAIN, path=Path("/elsewhere"), serves="x")),
        digest(options=dataclasses.replace(OPTIONS, jobs=7)),
        digest(options=dataclasses.replace(OPTIONS, make_variables=OPTIONS.make_variables[::-1])),
    ]
    assert set(same) == {digest()}


def test_each_input_changes_the_key() -> None:
    moved = Submodule(path="kwbase/vendor", url="u1", commit="e" * 40)
    elsewhere = Submodule(path="kwbase/vendor2", url="u1", commit="b" * 40)
    others = [
        digest(tree=dataclasses.replace(TREE, commit="f" * 40)),
        digest(tree=dataclasses.replace(TREE, version=Version.parse("V3.1.0-1-gaaaa"))),
        digest(tree=dataclasses.replace(TREE, version=Version.parse("V3.2.0"))),
        digest(tree=dataclasses.replace(TREE, submodules=(moved, TREE.submodules[1]))),
        digest(tree=dataclasses.replace(TREE, submodules=(elsewhere, TREE.submodules[1]))),
        digest(tree=dataclasses.replace(TREE, submodules=TREE.submodules[:1])),
        digest(toolchain=dataclasses.replace(TOOLCHAIN, name="u")),
        digest(toolchain=dataclasses.replace(TOOLCHAIN, architecture="arm64")),
        digest(toolchain=dataclasses.replace(TOOLCHAIN, lock_digest="0" * 64)),
        digest(options=dataclasses.replace(OPTIONS, build_type="Debug")),
        digest(options=dataclasses.replace(OPTIONS, make_variables=())),
    ]
    assert len({digest(), *others}) == len(others) + 1


def test_an_option_the_recipe_does_not_take_has_no_key() -> None:
    with pytest.raises(UsageError):
        digest(options=BuildOptions(build_type="Fast"))
