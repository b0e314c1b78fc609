"""Unpacking what others packed: real archives, honest and hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.console import Progress
from kwdb_build.errors import UnsafeArchiveError
from kwdb_build.source.archive import Limits, is_archive_name, stem, unpack
from kwdb_build.source.prepared import leads_nowhere, leads_out, links_out

if sys.version_info >= (3, 14):
    from compression.zstd import compress
else:
    from backports.zstd import compress

MTIME = 1_700_000_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes, "tar.gz": gzip.compress, "tar.xz": lzma.compress, "tar.bz2": bz2.compress,
    "tar.zst": compress,
}


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size, info.mtime = kind, mode, link, len(data), MTIME
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], comment: str = "") -> bytes:
    stream = io.BytesIO()
    headers = {"comment": comment} if comment else {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as packed:
        for info, data in entries:
            packed.addfile(info, io.BytesIO(data))
    return stream.getvalue()


HONEST = (
    entry("top/", kind=tarfile.DIRTYPE, mode=0o755), entry("top/Makefile", b"all:\n"),
    entry("top/run.sh", b"#!/bin/sh\n", mode=0o755), entry("top/link", kind=tarfile.SYMTYPE, link="sub/../Makefile"),
    entry("top/.git/config", b"[core]\n\tfsmonitor = evil\n"),
)


def refused(tmp_path: Path, data: bytes, **limits: int) -> UnsafeArchiveError:
    archive = tmp_path / "source.tar"
    archive.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsafeArchiveError) as caught:
        unpack(archive, tmp_path / "out", progress=Progress(), limits=Limits(**limits))
    outside = {path.name for path in tmp_path.iterdir()} - {"source.tar", "out"}
    assert outside == set(), "nothing was written outside"
    return caught.value


@pytest.mark.parametrize("suffix", PACKERS)
def test_whole_archives_of_every_kind(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"source.{suffix}"
    archive.write_bytes(PACKERS[suffix](tar(*HONEST, comment="a" * 40)))
    (tmp_path / "out").mkdir()
    found = unpack(archive, tmp_path / "out", progress=Progress())
    top = tmp_path / "out" / "top"
    assert (top / "Makefile").read_text() == "all:\n"
    assert os.access(top / "run.sh", os.X_OK)
    assert not os.access(top / "Makefile", os.X_OK)
    assert str((top / "link").readlink()) == "sub/../Makefile"
    assert not (top / ".git").exists(), "somebody else's git settings stay away"
    assert (found.files, found.newest_s, found.commit) == (2, MTIME, "a" * 40)
    assert is_archive_name(archive.name)
    assert stem(archive.name) == "source"


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_archives_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = os.urandom(200_000)
    data = PACKERS[suffix](tar(*HONEST, entry("top/noise", noise)))
    error = refused(tmp_path, data[: int(len(data) * share)])
    assert "damaged or cut short" in error.message


def test_a_tar_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    whole = tar(entry("top/Makefile", b"x" * 512), entry("top/other", b"y" * 512))
    error = refused(tmp_path, whole[:1024])
    assert "damaged or cut short" in error.message


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (entry("../outside", b"x"), "leads out"), (entry("top/../../outside", b"x"), "leads out"),
        (entry("/etc/outside", b"x"), "absolute"), (entry("top/a\\b", b"x"), "backslash"),
        (entry("top/a\nb", b"x"), "control characters"),
        (entry("top/link", kind=tarfile.SYMTYPE, link="/etc/passwd"), "leads out"),
        (entry("top/link", kind=tarfile.SYMTYPE, link="../../outside"), "leads out"),
        (entry("top/hard", kind=tarfile.LNKTYPE, link="top/Makefile"), "hard link"),
        (entry("top/dev", kind=tarfile.CHRTYPE), "device or pipe"), (entry("top/pipe", kind=tarfile.FIFOTYPE), "pipe"),
        (entry("top/suid", b"x", mode=0o4755), "setuid"), (entry("top/sgid", b"x", mode=0o2755), "setuid or setgid"),
        (entry("top/Makefile", b"again"), "two members"), (entry("top/Makefile/below", b"x"), "which is a file"),
        (entry("x" * 5000, b"x"), "too long"),
    ],
)
def test_what_must_not_be_unpacked(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], words: str) -> None:
    error = refused(tmp_path, tar(entry("top/Makefile", b"all:\n"), member))
    assert words in error.message
    assert error.exit_code == 4


def test_a_file_through_a_link_of_the_same_archive(tmp_path: Path) -> None:
    link = entry("top/link", kind=tarfile.SYMTYPE, link="sub")
    assert "which is a symlink" in refused(tmp_path, tar(link, entry("top/link/file", b"x"))).message


def test_two_links_that_lead_out_together(tmp_path: Path) -> None:
    links = (entry("here", kind=tarfile.SYMTYPE, link="."), entry("there", kind=tarfile.SYMTYPE, link="here/.."))
    assert "leads out" in refused(tmp_path, tar(*links)).message


def test_a_link_that_leads_nowhere_is_kept(tmp_path: Path) -> None:
    """KWDB's vendor directory has one: without it no archive of a whole checkout could be built."""
    archive = tmp_path / "source.tar"
    archive.write_bytes(tar(*HONEST, entry("top/invalid", kind=tarfile.SYMTYPE, link="/non/existing/file")))
    unpack(archive, tmp_path / "out", progress=Progress())
    assert str((tmp_path / "out/top/invalid").readlink()) == "/non/existing/file"
    assert list(links_out(tmp_path / "out")) == []


def test_bombs(tmp_path: Path) -> None:
    zeros = gzip.compress(tar(entry("top/zeros", bytes(3 << 20))))
    assert "times its own size" in refused(tmp_path, zeros, ratio_from_bytes=1 << 20).message


def test_too_large_and_too_many(tmp_path: Path) -> None:
    many = tar(*(entry(f"top/{number}", b"x") for number in range(30)))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "more than 20 entries" in refused(tmp_path / "a", many, entries=20).message
    assert "more than 20 B" in refused(tmp_path / "b", many, size_bytes=20).message


def zip_of(*members: tuple[str, bytes, int]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name, (2023, 11, 14, 22, 13, 20))
            info.create_system, info.external_attr = 3, mode << 16
            packed.writestr(info, data)
        packed.comment = b"b" * 40
    return stream.getvalue()


def test_zip(tmp_path: Path) -> None:
    archive = tmp_path / "source.zip"
    archive.write_bytes(zip_of(("top/Makefile", b"all:\n", 0o100644), ("top/run.sh", b"#!", 0o100755),
                               ("top/link", b"Makefile", 0o120777)))
    (tmp_path / "out").mkdir()
    found = unpack(archive, tmp_path / "out", progress=Progress())
    assert (tmp_path / "out/top/link").read_text() == "all:\n"
    assert os.access(tmp_path / "out/top/run.sh", os.X_OK)
    assert found.commit == "b" * 40
    assert found.newest_s == MTIME, "a zip's clock is read as UTC everywhere"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../outside", b"x", 0o100644), "leads out"), (("top/link", b"/etc", 0o120777), "leads out"),
        (("top/pipe", b"", 0o010644), "device or pipe"), (("top/suid", b"x", 0o104755), "setuid"),
    ],
)
def test_zips_that_must_not_be_unpacked(tmp_path: Path, member: tuple[str, bytes, int], words: str) -> None:
    assert words in refused(tmp_path, zip_of(("top/Makefile", b"", 0o100644), member)).message


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_damaged_zip(tmp_path: Path, at: float) -> None:
    data = bytearray(zip_of(("top/Makefile", os.urandom(100_000), 0o100644)))
    data[int(len(data) * at)] ^= 0xFF
    assert "damaged" in refused(tmp_path, bytes(data)).message


def test_not_an_archive(tmp_path: Path) -> None:
    error = refused(tmp_path, b"<html>404</html>")
    assert "no archive" in error.message
    assert ".tar.zst" in error.hint


PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=6).map("/".join)


@given(link=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4).map("/".join), target=PARTS)
def test_leads_out_agrees_with_normal_paths(link: str, target: str) -> None:
    normal = os.path.normpath(f"/root/{link}/../{target}")
    if not target or target.startswith("/"):
        assert leads_out(link, target)
    elif not normal.startswith("/root"):
        assert leads_out(link, target), "never says inside for what ends outside"
    elif ".." not in target:
        assert not leads_out(link, target)


def test_what_may_not_be_looked_into_is_not_nowhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        seen = leads_nowhere(str(closed / "secret"))
    finally:
        os.seteuid(user)
    assert not seen
    assert leads_nowhere(str(tmp_path / "no" / "file"))
