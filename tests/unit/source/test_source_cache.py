from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kwdb_build.console import Progress
from kwdb_build.errors import UsageError
from kwdb_build.files import write_json
from kwdb_build.source.cache import DAY_S, Entry, choose, entries, lock_of, parse_age, parse_size, prune
from kwdb_build.source.cachelock import hold

NOW = 1_800_000_000.0


def entry(name: str, *, days: float, size: int = 100, kind: str = "checkout") -> Entry:
    return Entry(kind=kind, path=Path("/c") / name, what=name, size_bytes=size, last_used=NOW - days * DAY_S)


FOUND = (
    entry("old", days=40, size=500), entry("broken", days=0, kind="damaged"), entry("new", days=1, size=300),
    entry("half", days=0, kind="unfinished"), entry("middle", days=10, size=200),
)


def names(**rules: object) -> set[str]:
    return {found.what for found in choose(FOUND, now=NOW, **rules)}  # type: ignore[arg-type]


def test_what_goes_by_age_and_by_size() -> None:
    rubbish = {"broken", "half"}
    assert names() == rubbish
    assert names(older_than_s=30 * DAY_S) == rubbish | {"old"}
    assert names(max_bytes=1000) == rubbish
    assert names(max_bytes=999) == rubbish | {"old"}
    assert names(max_bytes=300) == rubbish | {"old", "middle"}
    assert names(max_bytes=0) == names(everything=True) == {found.what for found in FOUND}


def test_sizes_and_ages() -> None:
    assert [parse_size(text) for text in ("0", "7", "2k", "500M", "2g")] == [0, 7, 2048, 500 << 20, 2 << 30]
    assert [parse_age(text) for text in ("12h", "30d", "4w")] == [43_200, 30 * DAY_S, 28 * DAY_S]
    for text in ("", "x", "-1", "1.5g", "g", "2gb"):
        with pytest.raises(UsageError):
            parse_size(text)
    for text in ("", "30", "d", "-1d", "1m"):
        with pytest.raises(UsageError):
            parse_age(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    git, source = tmp_path / "cache" / "git", tmp_path / "source"
    for path in (
        git / "ab.git", git / "cd.git.aside-1", source / ("1" * 40) / "src", source / f".{'2' * 40}.new" / "src",
        source / ("3" * 40 + "-full") / "src", source / "records",
    ):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 1000)
    write_json(git / "ab.git" / "kwdb-build.json", {"url": "https://h/kwdb.git"})
    for name in ("runs", "artifacts"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "keep").write_text("keep")
    (tmp_path / "elsewhere").mkdir()
    (source / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path


def test_what_is_there(home: Path) -> None:
    os.utime(home / "cache" / "git" / "ab.git" / "kwdb-build.json", (1, 1))
    found = entries(home)
    assert [found[0].kind, found[0].what, found[0].last_used] == ["repository", "https://h/kwdb.git", 1.0]
    assert sorted((one.kind, one.what) for one in found[1:]) == [
        ("checkout", f"commit {'1' * 12}"), ("checkout", f"commit {'3' * 12} (full)"),
        ("damaged", "set aside as damaged"), ("unfinished", "left by a run that was cut off"),
    ]
    assert all(one.size_bytes >= 1000 for one in found)
    assert entries(home / "nothing") == ()


def test_everything_goes_and_nothing_else(home: Path) -> None:
    chosen = choose(entries(home), everything=True)
    tried = prune(chosen, progress=Progress(), dry_run=True)
    assert len(tried.removed) == len(entries(home)) == 5
    done = prune(chosen, progress=Progress())
    assert (len(done.removed), done.kept, entries(home)) == (5, {}, ())
    assert done.freed_bytes >= 5000
    for name in ("runs/1/keep", "artifacts/1/keep", "source/records/file", "elsewhere"):
        assert (home / name).exists()


def test_what_is_used_needed_or_holds_a_store_stays(home: Path) -> None:
    one, three = home / "source" / ("1" * 40), home / "source" / ("3" * 40 + "-full")
    (three / "src" / "kwbase-data").mkdir()
    (three / "src" / "kwbase-data" / "KWBASEDB_VERSION").write_text("1")
    chosen = choose(entries(home), everything=True)
    repository = next(found for found in chosen if found.kind == "repository")
    assert lock_of(repository) == home / "cache" / "git" / "ab.lock"
    with hold(lock_of(repository), what="a test", progress=Progress(), timeout_s=0):
        done = prune(chosen, progress=Progress(), needed=(one / "src" / "gitee.com",))
    assert done.kept[str(repository.path)] == "it is in use"
    assert "not finished" in done.kept[str(one)]
    assert "database store" in done.kept[str(three)]
    assert {found.kind for found in done.removed} == {"damaged", "unfinished"}
    assert all(path.exists() for path in (repository.path, one, three))


def test_a_cut_off_removal_is_finished_by_the_next_one(home: Path) -> None:
    place = home / "source" / ("1" * 40)
    place.rename(place.with_name(f"{place.name}.aside-1"))
    assert any(found.kind == "damaged" and found.path.name.startswith("1") for found in entries(home))
    prune(choose(entries(home)), progress=Progress())
    assert [path for path in (home / "source").glob("1*") if path.is_dir()] == []
    shutil.rmtree(home / "source")
    assert [found.kind for found in entries(home)] == ["repository"]
