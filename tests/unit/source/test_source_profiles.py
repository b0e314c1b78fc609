from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build.errors import SourceError, UsageError
from kwdb_build.source.profiles import Policy, distinct, host_of, profiles_of
from kwdb_build.source.reference import Redirect, apply_redirects

KWDB, VENDOR = "https://gitee.com/kwdb/kwdb.git", "https://gitee.com/kwdb/kw-vendor.git"
HOME = Path("/h")


def where(url: str, *names: str, **more: object) -> list[str]:
    found = profiles_of(names, {}, home=HOME, **more)  # type: ignore[arg-type]
    return [apply_redirects(url, profile.redirects) for profile in distinct(found, url)]


def test_built_in_ones_in_the_order_asked_for() -> None:
    assert where(KWDB, "gitee", "github", "local") == [
        KWDB, "https://github.com/KWDB/kwdb.git", "/h/mirror/kwdb.git"
    ]
    assert where(VENDOR, "github", "gitee", "github") == ["https://github.com/KWDB/kw-vendor.git", VENDOR]
    assert where("/my/own/repository", "gitee", "github") == ["/my/own/repository"]


def test_own_ones_and_one_that_takes_a_built_in_name() -> None:
    own = {"office": {"https://gitee.com/kwdb/": "https://git.example/m/"}, "github": {KWDB: "git@x:kwdb.git"}}
    found = profiles_of(("office", "github"), own, home=HOME)
    assert [apply_redirects(KWDB, profile.redirects) for profile in found] == [
        "https://git.example/m/kwdb.git", "git@x:kwdb.git"
    ]


def test_what_the_person_redirects_wins_in_every_profile() -> None:
    said = (Redirect(prefix="https://gitee.com/", replacement="/mine/"),)
    assert where(KWDB, "gitee", "github", "local", redirects=said) == ["/mine/kwdb/kwdb.git"]


@pytest.mark.parametrize("own", [{}, {"office": {"": "x"}}, {"office": {"https://a/": "-x"}}])
def test_unusable_ones(own: dict[str, dict[str, str]]) -> None:
    with pytest.raises(UsageError):
        profiles_of(("office",), own, home=HOME)
    with pytest.raises(UsageError) as caught:
        profiles_of(("githab",), {}, home=HOME)
    assert "did you mean github" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Me:x@GITEE.com:443/a", "gitee.com"), ("git@gitee.com:kwdb/kwdb.git", "gitee.com"),
        ("ssh://git@h:22/x", "h"), ("/path", ""), ("file:///path", ""), ("./a:b", ""), ("https://[::1]:8/x", "::1"),
    ],
)
def test_hosts(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://gitee.com/x", True), ("https://a.example.com/x", True), ("https://example.com/x", False),
        ("https://evilgitee.com/x", False), ("https://gitee.com.evil/x", False), ("http://gitee.com/x", False),
        ("git@gitee.com:x", True), ("/here", True), ("https://gitee.com@evil/x", False),
    ],
)
def test_what_may_be_talked_to(url: str, *, allowed: bool) -> None:
    policy = Policy(hosts=("gitee.com", "*.example.com"), schemes=("https", "ssh", "file"))
    if allowed:
        policy.require(url)
    else:
        with pytest.raises(SourceError, match="not among the allowed"):
            policy.require(url)
    with pytest.raises(SourceError, match="file is not among"):
        Policy(schemes=("https",)).require("/here")
