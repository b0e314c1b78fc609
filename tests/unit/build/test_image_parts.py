"""What goes into a container image: names, users, packages and their files, without an engine."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from kwdb_build.build import debian, image
from kwdb_build.build.image import User
from kwdb_build.errors import DependencyError, UsageError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kwdb", "kwdb:latest"), ("kwdb/kwdb:3.2.1", "kwdb/kwdb:3.2.1"),
        ("registry.example:5000/team/kwdb", "registry.example:5000/team/kwdb:latest"),
        ("localhost:5000/kwdb:V3.2.1_x", "localhost:5000/kwdb:V3.2.1_x"),
    ],
)
def test_names_of_images(text: str, wanted: str) -> None:
    assert image.parse_tag(text) == wanted


@pytest.mark.parametrize("text", ["", "KWDB", "-x", "a b", "a:", ":1", "a//b", "a:b:c", "a:1/", "x@sha256:00", "a\n"])
def test_what_is_no_name_of_an_image(text: str) -> None:
    with pytest.raises(UsageError):
        image.parse_tag(text)


def test_users() -> None:
    assert image.parse_user("0") == User()
    assert image.parse_user("1000") == User(uid=1000, gid=1000)
    assert image.parse_user("1000:50") == User(uid=1000, gid=50)
    for text in ("", "root", "-1", "1:", "1:2:3", "9999999999"):
        with pytest.raises(UsageError):
            image.parse_user(text)


def tar_of(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def deb(path: Path, control: str, files: dict[str, bytes], *, kind: str = "xz") -> Path:
    """A package as dpkg-deb makes it."""
    pack = {"xz": lzma.compress, "zst": zstd.compress, "none": lambda data: data}[kind]
    ending = "" if kind == "none" else f".{kind}"
    data = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"), (f"control.tar{ending}", pack(tar_of({"./control": control.encode()}))),
        (f"data.tar{ending}", pack(tar_of(files))),
    ):
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        data += content + b"\n" * (len(content) % 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["xz", "zst", "none"])
def test_a_package_is_read_without_dpkg(tmp_path: Path, kind: str) -> None:
    path = deb(
        tmp_path / "x.deb", "Package: libz1\nVersion: 1:2\nDepends: libc6 (>= 2),\n libgcc-s1\nDescription: x\n y\n",
        {"./lib/x86_64-linux-gnu/libz.so.1.2": b"\x7fELF", "./usr/share/doc/libz1/copyright": b"zlib"}, kind=kind,
    )
    package = debian.read_package(path)
    assert (package.name, package.fields["Version"]) == ("libz1", "1:2")
    assert package.fields["Depends"] == "libc6 (>= 2),\n libgcc-s1"
    assert debian.libraries_in(path) == {"libz.so.1.2"}


@pytest.mark.parametrize("content", [b"", b"no package", b"!<arch>\n", b"!<arch>\n" + b"x" * 200])
def test_what_is_no_package(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(DependencyError, match=r"x\.deb"):
        debian.read_package(tmp_path / "x.deb")


def test_a_cut_package(tmp_path: Path) -> None:
    path = deb(tmp_path / "x.deb", "Package: a\n", {"./lib/liba.so.1": b"x" * 9000})
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(DependencyError):
        debian.libraries_in(path)


def package(name: str, **fields: str) -> debian.Package:
    return debian.Package(path=Path("/nowhere"), fields={"Package": name, **{k.replace("_", "-"): v for k, v in fields.items()}})


def test_what_is_needed_brings_along_what_that_needs() -> None:
    packages = {one.name: one for one in (
        package("bash", Pre_Depends="libc6 (>= 2.36), libtinfo6 (>= 6)", Depends="base-files (>= 2.1.12)"),
        package("libc6", Depends="libgcc-s1, libcrypt1 (>= 1:4.4.10-10~)"), package("libgcc-s1", Depends="libc6:any"),
        package("libtinfo6", Depends="libc6"), package("base-files", Pre_Depends="awk"),
        package("mawk", Provides="awk (= 1.3), editor"), package("libcrypt1"), package("gcc", Depends="bash"),
        package("other", Depends="absent | libcrypt1, debconf (>= 0.5) | debconf-2.0"),
    )}
    assert debian.closure(packages, ["bash"]) == [
        "base-files", "bash", "libc6", "libcrypt1", "libgcc-s1", "libtinfo6", "mawk",
    ]
    assert debian.closure(packages, ["other"]) == ["libcrypt1", "other"]
    assert debian.closure(packages, []) == []


def test_a_library_that_no_package_holds_is_named(tmp_path: Path) -> None:
    path = deb(tmp_path / "x.deb", "Package: libz1\n", {"./usr/lib/libz.so.1": b""})
    packages = [debian.read_package(path)]
    assert debian.holders(packages, ["libz.so.1"]) == {"libz.so.1": "libz1"}
    with pytest.raises(DependencyError, match=r"libgeos\.so\.3"):
        debian.holders(packages, ["libz.so.1", "libgeos.so.3"])


def test_a_layer_has_one_usr_whatever_the_packages_say(tmp_path: Path) -> None:
    packages = [
        debian.read_package(deb(
            tmp_path / f"{name}.deb", f"Package: {name}\nVersion: 1\n",
            {f"./bin/{name}": b"#!", f"./usr/share/man/man1/{name}.1": b"m", f"./usr/share/doc/{name}/copyright": b"c",
             f"./usr/share/doc/{name}/NEWS": b"n", "./lib64/ld-linux-x86-64.so.2": b"l"},
        ))
        for name in ("bash", "dash")
    ]
    layers = [
        image._write_layer(tmp_path / str(number), lambda tar: image._system(tar, packages, User(uid=1000, gid=1000)))
        for number in range(2)
    ]
    assert layers[0].digest == layers[1].digest
    with tarfile.open(layers[0].path) as tar:
        members = {member.name: member for member in tar}
        assert len(members) == len(tar.getnames())
        passwd = (tar.extractfile("etc/passwd") or io.BytesIO()).read()
    assert {"usr/bin/bash", "usr/lib64/ld-linux-x86-64.so.2", "usr/share/doc/bash/copyright"} <= members.keys()
    assert members["bin"].linkname == "usr/bin"
    assert members["usr/bin/sh"].linkname == "dash"
    assert not [name for name in members if "/man/" in name or "NEWS" in name]
    assert b"kwdb:x:1000:1000:" in passwd
    assert "var/lib/dpkg/status.d/bash" in members
    for member in members.values():
        assert member.mtime == 1_672_531_200
        assert not member.uname
