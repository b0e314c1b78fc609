from __future__ import annotations

from typing import TYPE_CHECKING

from kwdb_build.source.submodules import candidates_beside, parse_gitlinks, parse_gitmodules

if TYPE_CHECKING:
    from pathlib import Path

LINK = "d63ad876f83bb3a0d561824349834aa8786cb9a9"
LISTING = (
    f"100644 blob 4feeb23c9a77d6dcd9bb6b67bcd3d0ba2a3a3c5a\t.gitmodules\0"
    f"160000 commit {LINK}\tkwbase/vendor\0"
    f"160000 commit {LINK}\tdir with\ttab\nand line\0"
    f"100755 blob 4feeb23c9a77d6dcd9bb6b67bcd3d0ba2a3a3c5a\tx.sh\0"
)


def test_gitlinks() -> None:
    links, has_file = parse_gitlinks(LISTING)
    assert links == {"kwbase/vendor": LINK, "dir with\ttab\nand line": LINK}
    assert has_file


def test_a_gitmodules_that_is_a_symlink_is_no_file() -> None:
    assert parse_gitlinks(f"120000 blob {LINK}\t.gitmodules\0") == ({}, False)
    assert parse_gitlinks("") == ({}, False)


def test_gitmodules() -> None:
    listing = (
        "submodule.kwbase/vendor.path\nkwbase/vendor\0submodule.kwbase/vendor.url\nhttps://h/kw-vendor.git\0"
        "submodule.kwbase/vendor.branch\n2.0-master\0submodule.with.dots.path\na/b\0core.bare\nfalse\0novalue\0"
    )
    assert parse_gitmodules(listing) == {
        "kwbase/vendor": ("kwbase/vendor", "https://h/kw-vendor.git", "2.0-master"), "a/b": ("with.dots", "", ""),
    }


def test_where_siblings_are_looked_for(tmp_path: Path) -> None:
    for name in ("KWDB+kwdb", "KWDB+kw-vendor", "other+kw-vendor-extra"):
        (tmp_path / name / "repo").mkdir(parents=True)
    main = tmp_path / "KWDB+kwdb" / "repo"
    found = candidates_beside(main, "kwbase/vendor", "kw-vendor")
    assert main / ".git" / "modules" / "kwbase/vendor" == found[0]
    assert main.parent / "kw-vendor.git" in found
    assert main.parent / "kw-vendor" in found
    assert tmp_path / "KWDB+kw-vendor" / "repo" in found
    assert tmp_path / "other+kw-vendor-extra" / "repo" not in found
    assert not [path for path in candidates_beside(main, "../../x", "kw-vendor") if ".." in path.parts]
