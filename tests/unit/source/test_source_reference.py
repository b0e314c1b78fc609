from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.errors import ExitCode, SourceError, UnknownReferenceError, UsageError
from kwdb_build.source.reference import (
    Redirect,
    RemoteRefs,
    Target,
    apply_redirects,
    basename,
    choose,
    is_local,
    join_relative,
    latest_release,
    local_path,
    parse_ls_remote,
    parse_redirect,
    pull_request_ref,
    redact,
    split_credentials,
    suggest,
    unknown_reference,
    validate_ref,
    validate_url,
)

KWDB_TAGS = (
    "V2.0.4", "V2.2.2", "V3.0.0", "V3.0.0_STORAGE_BEFORE", "V3.0.1", "V3.1.0", "V3.1.0_BEFORE_3.0.1MERGE", "V3.2.0",
    "V3.2.1", "v1.0.0", "v3.0.0_old", "v3.1.0", "v3.1.0_old",
)
A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.mark.parametrize(
    "url",
    [
        "https://gitee.com/kwdb/kwdb.git", "http://127.0.0.1:8080/kwdb", "ssh://git@host:22/kwdb.git",
        "git@gitee.com:kwdb/kwdb.git", "host:kwdb.git", "git://host/kwdb", "file:///srv/kwdb.git", "/srv/kwdb.git",
        "./kwdb", "../kwdb", "~/kwdb", "kwdb", "/srv/with space/kwdb", "https://user:word@host/x", "[::1]:kwdb",
        "https://[::1]:8080/kwdb.git", "./odd:name", "C/x:y",
    ],
)
def test_usable_urls_come_back_unchanged(url: str) -> None:
    assert validate_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "", " ", "-u", "--upload-pack=touch x", "ext::sh -c id", "::", "::x", "fd::17", "foo::bar", "https://", "http:///path",
        "ftp://host/x", "javascript://x", "ssh://-oProxyCommand=id/x", "ssh://%2doProxyCommand=id/x",
        "ssh://-o@host/x", "-oProxy@host:x", "host:-x", "-h:x", "host:", "file://host/x", "https://h:port/x",
        "https://h/a\nb", "https://h/a%0ab", "/srv/\x00", "/srv/\x1b[31m", "https://h/\x85", " /srv", "/srv\n",
        "https://" + "a" * 3000,
    ],
)
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        validate_url(url)
    assert caught.value.exit_code is ExitCode.SOURCE
    assert caught.value.hint


@given(st.text(max_size=60))
def test_what_passes_is_no_option_no_helper_and_has_no_control_characters(url: str) -> None:
    try:
        accepted = validate_url(url)
    except SourceError:
        return
    assert not accepted.startswith("-")
    assert "::" not in re.sub(r"\[[^\]/]*\]", "", accepted).split("/", maxsplit=1)[0]
    assert all(ord(character) >= 32 for character in accepted)


@pytest.mark.parametrize(
    "ref", ["V3.1.0", "v3.1.0_old", "V3.1.0_BEFORE_3.0.1MERGE", "docs/phase1", "1804", A, "refs/tags/V1", "a@b", "ünï"]
)
def test_usable_references(ref: str) -> None:
    assert validate_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "", "-d", "--all", "a b", "a\tb", "a\nb", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a..b", "a@{1}", "@",
        "HEAD", "/a", "a/", "a//b", ".a", "a/.b", "a.", "a.lock", "a.lock/b", "x" * 300, "a\x7f",
    ],
)
def test_unusable_references(ref: str) -> None:
    with pytest.raises(SourceError):
        validate_ref(ref)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:word@host/x", "https://***@host/x"),
        ("https://t0ken@host/x", "https://***@host/x"),
        ("https://user:p@ss:w@host/x", "https://***@host/x"),
        ("https://host/x?access_token=abc&x=1", "https://host/x?access_token=***&x=1"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:word@host/x", "ssh://git:***@host/x"),
        ("git@host:x", "git@host:x"),
        ("https://host/path@1.0/x", "https://host/path@1.0/x"),
        ("fatal: 'https://u:p@h/x' and http://q@h/y", "fatal: 'https://***@h/x' and http://***@h/y"),
        ("/srv/a@b", "/srv/a@b"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@given(st.from_regex(r"[a-zA-Z0-9%._~!$&()*+,;=:-]{6,20}", fullmatch=True))
def test_no_password_survives_redaction(password: str) -> None:
    secret = f"{password}XYZ"
    assert secret not in redact(f"cannot read https://name:{secret}@host.example/kwdb.git today")


def test_credentials_are_split_off_decoded() -> None:
    clean, secret = split_credentials("https://me:s3cr%25t%40x@host:8443/kwdb.git?x=1")
    assert clean == "https://host:8443/kwdb.git?x=1"
    assert secret is not None
    assert (secret.user, secret.password) == ("me", "s3cr%t@x")
    assert "s3cr" not in repr(secret)
    for url in ("https://host/x", "ssh://git@host/x", "git@host:x", "/srv/a@b"):
        assert split_credentials(url) == (url, None)


@pytest.mark.parametrize(
    ("text", "prefix", "replacement"),
    [
        ("https://gitee.com/kwdb/=/mirror/", "https://gitee.com/kwdb/", "/mirror/"),
        ("https://gitee.com/=https://m/?a=b", "https://gitee.com/", "https://m/?a=b"),
        ("git@gitee.com:=ssh://m/", "git@gitee.com:", "ssh://m/"),
    ],
)
def test_redirects_are_read(text: str, prefix: str, replacement: str) -> None:
    assert parse_redirect(text) == Redirect(prefix=prefix, replacement=replacement)


@pytest.mark.parametrize(
    "text", ["", "a", "=b", "a=", "-a=b", "a=-b", "ext::a=b", "a=ext::b", "https://u:p@h/=x", "a=ftp://x/"]
)
def test_malformed_redirects(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_redirect(text)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "u:p" not in f"{caught.value} {caught.value.context}"


def test_a_redirect_hides_its_replacement_when_it_is_printed() -> None:
    assert "word" not in repr(parse_redirect("https://gitee.com/=https://me:word@mirror/"))


def test_the_longest_prefix_wins_once() -> None:
    redirects = (
        Redirect(prefix="https://gitee.com/", replacement="https://one/"),
        Redirect(prefix="https://gitee.com/kwdb/kw-vendor", replacement="/two"),
        Redirect(prefix="https://one/", replacement="https://never/"),
    )
    assert apply_redirects("https://gitee.com/kwdb/kwdb.git", redirects) == "https://one/kwdb/kwdb.git"
    assert apply_redirects("https://gitee.com/kwdb/kw-vendor.git", redirects) == "/two.git"
    assert apply_redirects("https://github.com/x", redirects) == "https://github.com/x"


@pytest.mark.parametrize(
    ("base", "url", "joined"),
    [
        ("https://h/kwdb/kwdb.git", "../kw-vendor.git", "https://h/kwdb/kw-vendor.git"),
        ("https://h/kwdb/kwdb.git/", "../../other/x", "https://h/other/x"),
        ("git@h:kwdb/kwdb.git", "../kw-vendor.git", "git@h:kwdb/kw-vendor.git"),
        ("/srv/kwdb", "./inside", "/srv/kwdb/inside"),
        ("https://h/x", "https://other/y", "https://other/y"),
    ],
)
def test_relative_submodule_urls(base: str, url: str, joined: str) -> None:
    assert join_relative(base, url) == joined


def test_a_relative_url_cannot_leave_its_host() -> None:
    with pytest.raises(SourceError, match="above the host"):
        join_relative("https://h/kwdb", "../../evil.example/x")


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://gitee.com/kwdb/kw-vendor.git", "kw-vendor"), ("git@h:kw-cdeps.git", "kw-cdeps"), ("/a/b/", "b")],
)
def test_basename(url: str, name: str) -> None:
    assert basename(url) == name


def test_what_is_local() -> None:
    assert [is_local(url) for url in ("/a", "./a:b", "a", "file:///a", "h:a", "https://h/a")] == [
        True, True, True, True, False, False
    ]
    assert local_path("file:///srv/with%20space") == "/srv/with space"


@pytest.mark.parametrize(
    ("ref", "first"),
    [
        ("V3.1.0_OLD", "v3.1.0_old"), ("v3.2.1", "V3.2.1"), ("3.2.1", "V3.2.1"), ("V3.2", "V3.2.0"),
        ("V3.1.O", "V3.1.0"), ("refs/tags/v3.2.0", "V3.2.0"),
    ],
)
def test_near_misses(ref: str, first: str) -> None:
    assert suggest(ref, KWDB_TAGS)[0] == first


def test_no_near_miss_for_something_else() -> None:
    assert suggest("completely-different", KWDB_TAGS) == ()
    assert len(suggest("3", KWDB_TAGS)) <= 5
    assert suggest("v3.2.1", KWDB_TAGS) == ("V3.2.1",)


LS_REMOTE = f"""\
{A}\trefs/heads/master
{B}\trefs/heads/1804
{C}\trefs/tags/V3.1.0
{A}\trefs/tags/V3.1.0^{{}}
{B}\trefs/tags/v3.1.0
{B}\trefs/pull/7/head
warning: not a line of it
"""


def test_ls_remote_peels_annotated_tags() -> None:
    refs = parse_ls_remote(LS_REMOTE)
    assert refs.tags == {"V3.1.0": A, "v3.1.0": B}
    assert refs.heads == {"master": A, "1804": B}
    assert refs.names == ("1804", "V3.1.0", "master", "v3.1.0")


def test_choosing() -> None:
    refs = RemoteRefs(tags={"V1": A, "both": A, "same": C}, heads={"master": B, "both": B, "same": C, "1804": B})
    found = {ref: choose(ref, refs, url="u") for ref in ("V1", "master", "same", "1804", A, "abcd", "refs/tags/both")}
    assert {ref: (target.kind, target.commit) if target else None for ref, target in found.items()} == {
        "V1": ("tag", A), "master": ("branch", B), "same": ("tag", C), "1804": ("branch", B), A: ("commit", A),
        "abcd": ("commit", "abcd"), "refs/tags/both": ("tag", A),
    }
    assert choose("v1", refs, url="u") is None
    assert choose("refs/heads/V1", refs, url="u") is None
    with pytest.raises(SourceError, match="both a tag and a branch"):
        choose("both", refs, url="u")


def test_an_unknown_reference_says_what_there_is() -> None:
    refs = RemoteRefs(tags=dict.fromkeys(KWDB_TAGS, A), heads={"master": A})
    error = unknown_reference("V3.1.0_OLD", refs, url="https://u:p@h/x")
    assert error.message == "https://***@h/x has no tag, branch or commit 'V3.1.0_OLD'"
    assert error.context == "it has 13 tags and 1 branches; newest tags: V3.2.1, V3.2.0, v3.1.0, V3.1.0, V3.0.1"
    assert error.hint.startswith("did you mean v3.1.0_old")


@pytest.mark.parametrize("ref", ["pr/123", "pull/123", "pull/123/head", "!123"])
def test_pull_requests(ref: str) -> None:
    assert pull_request_ref(validate_ref(ref)) == "refs/pull/123/head"


@pytest.mark.parametrize("ref", ["pr/", "pr/0", "pr/12x", "pull/1/merge", "1", "xpr/1", "pr/1/2"])
def test_no_pull_requests(ref: str) -> None:
    assert pull_request_ref(ref) == ""


RELEASES = (
    "V2.0.3.2", "V2.2.2", "V3.0.0", "V3.0.0_STORAGE_BEFORE", "V3.1.0", "V3.1.0_BEFORE_3.0.1MERGE", "V3.2.1", "V3.2.0",
    "V3.10.0", "v9.0.0", "V9.0.0_old", "V9.0.0_RC1", "V9.0.0-rc1", "code-review-ts_vgroup-v1.0", "V9",
)


def test_the_latest_release_is_the_highest_and_nothing_else() -> None:
    assert latest_release(RELEASES) == "V3.10.0"
    assert latest_release(RELEASES[:8]) == "V3.2.1"
    assert latest_release(("v1.0.0", "V3.0.0_STORAGE_BEFORE")) == ""
    refs = RemoteRefs(tags={"V3.1.0": "a" * 40, "V3.1.0_old": "b" * 40}, heads={"master": "c" * 40})
    assert choose("latest", refs, url="u") == Target(kind="tag", name="V3.1.0", commit="a" * 40)


def test_latest_that_is_also_a_name_or_nothing() -> None:
    both = RemoteRefs(tags={"V3.1.0": "a" * 40}, heads={"latest": "c" * 40})
    with pytest.raises(SourceError, match="as well") as caught:
        choose("latest", both, url="u")
    assert "V3.1.0 or refs/heads/latest" in caught.value.hint
    assert choose("refs/heads/latest", both, url="u") == Target(kind="branch", name="latest", commit="c" * 40)
    with pytest.raises(UnknownReferenceError, match="no release tag"):
        choose("latest", RemoteRefs(tags={"V1_RC1": "a" * 40}, heads={}), url="u")
