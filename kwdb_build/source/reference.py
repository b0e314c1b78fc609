"""What a person may ask for: URLs, references, redirects. Pure: nothing here looks at a disk or a network.

A URL or a reference ends up in git's argument list, so whatever git could take for an option, a program to run or a
terminal command is refused here, before git sees it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from kwdb_build.errors import SourceError, UnknownReferenceError, UsageError
from kwdb_build.model import Version

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMES = ("https", "http", "ssh", "git", "file")
LOCAL_SCHEMES = ("", "file")
_MAX_LENGTH = 2048
_SUGGESTIONS = 5
_FULL_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SHORT_COMMIT = re.compile(r"^[0-9a-f]{4,40}$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_IPV6_HOST = re.compile(r"\[[^\]/]*\]")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"^(?:(?P<user>[^@/:]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/:\[\]]+):(?P<path>.*)$", re.DOTALL)
_URL_USER = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/?#'\"]*)@")
_SECRET_QUERY = re.compile(r"(?i)([?&][a-z0-9_.-]*(?:token|secret|passw|pwd|key|auth|sign)[a-z0-9_.-]*=)[^&\s#'\"]+")
LATEST = "latest"
_PULL_REQUEST = re.compile(r"^(?:!|(?:pr|pull)/)(?P<number>[1-9]\d{0,9})(?:/head)?$")
_RELEASE_TAG = re.compile(r"^V\d+(?:\.\d+){1,3}$")
_REF_FORBIDDEN = re.compile(r"[ ~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)")


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """URLs that start with prefix are fetched from replacement + what follows (git's url.<…>.insteadOf)."""

    prefix: str
    replacement: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What stood before the @ of a URL. Never printed, never in an argument list."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RemoteRefs:
    """Tags and branches of a repository: short name -> full hash (tags: of what an annotated tag points to)."""

    tags: dict[str, str]
    heads: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, for suggestions."""
        return tuple(sorted({*self.tags, *self.heads}))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a reference means: kind is tag, branch, ref or commit; for commit, `commit` may still be abbreviated.

    name is what the repository calls it: for `latest` the tag, for `pr/7` refs/pull/7/head.
    """

    kind: str
    name: str
    commit: str


def redact(text: str) -> str:
    """Hide passwords and tokens of every URL in text; a user name is kept only for ssh, where it is no secret."""

    def hide(match: re.Match[str]) -> str:
        user, colon, _ = match["user"].partition(":")
        shown = f"{user}:***" if colon else user
        return f"{match['scheme']}{shown if match['scheme'].lower() == 'ssh://' else '***'}@"

    return _SECRET_QUERY.sub(r"\1***", _URL_USER.sub(hide, text))


def scheme_of(url: str) -> str:
    """`https`, `ssh` (also for user@host:path), `file`, or '' for a plain path."""
    if match := _SCHEME.match(url):
        return match[1].lower()
    return "ssh" if _SCP.match(url) and not url.startswith(("/", ".")) else ""


def is_local(url: str) -> bool:
    """Whether url names something on this machine: a path or file://."""
    return scheme_of(url) in LOCAL_SCHEMES


def local_path(url: str) -> str:
    """The path that a local url names."""
    return unquote(urlsplit(url).path) if scheme_of(url) == "file" else url


def validate_url(url: str) -> str:
    """Return url when it is one that may be handed to git, else raise SourceError saying why not."""
    hint = "give an https, http, ssh or git URL, user@host:path, or the path of a local repository"
    if not url.strip():
        raise SourceError("the source URL is empty", hint=hint)
    if len(url) > _MAX_LENGTH:
        raise SourceError(f"the source URL is longer than {_MAX_LENGTH} characters", hint=hint)
    if url != url.strip() or _CONTROL.search(url) or _CONTROL.search(unquote(url)):
        raise SourceError(f"the source URL holds control or blank characters: {redact(url)!r}", hint=hint)
    if url.startswith("-"):
        raise SourceError(f"the source URL looks like an option: {url!r}", hint=hint)
    # git takes any NAME:: at the beginning as a helper; only an IPv6 address may hold "::" there.
    if "::" in _IPV6_HOST.sub("", url).split("/", maxsplit=1)[0]:
        raise SourceError(f"remote helpers such as ext:: are refused: {redact(url)!r}", hint=hint)
    scheme = scheme_of(url)
    if _SCHEME.match(url):
        _validate_scheme_url(url, scheme, hint)
    elif scheme == "ssh":
        _validate_scp(url, hint)
    return url


def _validate_scheme_url(url: str, scheme: str, hint: str) -> None:
    if scheme not in SCHEMES:
        raise SourceError(f"unknown kind of source URL {scheme}:// in {redact(url)!r}", hint=hint)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SourceError(f"the source URL is malformed: {redact(url)!r}", context=redact(str(error)), hint=hint) \
            from None
    host, user = parts.hostname or "", unquote(parts.username or "")
    if scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise SourceError(f"a file:// URL needs an absolute path: {redact(url)!r}", hint=hint)
    elif not host or unquote(host).startswith("-") or user.startswith("-"):
        raise SourceError(f"the source URL names no usable host: {redact(url)!r}", hint=hint)


def _validate_scp(url: str, hint: str) -> None:
    match = _SCP.match(url)
    if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
        raise SourceError(f"the source URL names no usable host: {redact(url)!r}", hint=hint)
    if not match["path"] or match["path"].startswith("-"):
        raise SourceError(f"the source URL names no usable path: {redact(url)!r}", hint=hint)


def validate_ref(ref: str) -> str:
    """Return ref when it can name a tag, branch or commit (git's check-ref-format), else raise SourceError."""
    hint = "name a tag such as V3.1.0, a branch, a commit hash, a pull request such as pr/123, or latest"
    if not ref:
        raise SourceError("the reference is empty", hint=hint)
    if ref.startswith("-"):
        raise SourceError(f"the reference looks like an option: {ref!r}", hint=hint)
    if _CONTROL.search(ref):
        raise SourceError(f"the reference holds control characters: {ref!r}", hint=hint)
    if (
        _REF_FORBIDDEN.search(ref) or ref.startswith(("/", ".")) or ref.endswith(("/", "."))
        or ref in {"@", "HEAD"} or len(ref) > 255  # noqa: PLR2004  # a file name's limit
    ):
        raise SourceError(f"{ref!r} cannot be the name of a tag, a branch or a commit", hint=hint)
    return ref


def is_full_commit(ref: str) -> bool:
    """Whether ref is a whole commit hash."""
    return _FULL_COMMIT.match(ref.lower()) is not None


def may_be_commit(ref: str) -> bool:
    """Whether ref could be the beginning of a commit hash."""
    return _SHORT_COMMIT.match(ref.lower()) is not None


def pull_request_ref(ref: str) -> str:
    """`refs/pull/123/head` of pr/123, pull/123, pull/123/head and !123 (gitee and GitHub keep them alike), else ''."""
    match = _PULL_REQUEST.match(ref)
    return f"refs/pull/{match['number']}/head" if match else ""


def latest_release(tags: Iterable[str]) -> str:
    """The highest tag that is a release and nothing else: V and numbers; no RC, `_old`, `BEFORE`, no small v. Or ''."""
    releases = [tag for tag in tags if _RELEASE_TAG.match(tag)]
    return max(releases, key=lambda tag: _age(tag)[:2], default="")


def parse_redirect(text: str) -> Redirect:
    """Read PREFIX=REPLACEMENT; UsageError when either side is unusable."""
    prefix, equals, replacement = text.partition("=")
    hint = "write PREFIX=REPLACEMENT, such as https://gitee.com/kwdb/=https://mirror.example/kwdb/"
    if not equals or not prefix or not replacement:
        raise UsageError(f"not a redirect: {redact(text)!r}", hint=hint)
    try:
        for side in (prefix, replacement):
            validate_url(f"{side}path" if side.endswith(":") else side)  # `git@gitee.com:` is a whole prefix
    except SourceError as error:
        raise UsageError(f"not a redirect: {redact(text)!r}", context=error.message, hint=hint) from None
    if split_credentials(prefix)[1] is not None:
        raise UsageError(f"the prefix of a redirect holds no password: {redact(text)!r}", hint=hint)
    return Redirect(prefix=prefix, replacement=replacement)


def apply_redirects(url: str, redirects: tuple[Redirect, ...]) -> str:
    """What git makes of url: the longest matching prefix is replaced, once."""
    matching = [redirect for redirect in redirects if url.startswith(redirect.prefix)]
    if not matching:
        return url
    best = max(matching, key=lambda redirect: len(redirect.prefix))
    return best.replacement + url[len(best.prefix):]


def split_credentials(url: str) -> tuple[str, Credentials | None]:
    """Take user and password (or token) out of an http(s) URL; other URLs come back as they are."""
    if scheme_of(url) not in {"http", "https"}:
        return url, None
    parts = urlsplit(url)
    before, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = before.partition(":")
    return parts._replace(netloc=host).geturl(), Credentials(user=unquote(user), password=unquote(password))


def join_relative(base: str, url: str) -> str:
    """Resolve a submodule URL such as ../kw-vendor.git against the URL of the repository that names it."""
    if not url.startswith(("./", "../")):
        return url
    base = base.rstrip("/")
    while url.startswith(("./", "../")):
        if url.startswith("./"):
            url = url[2:]
            continue
        url = url[3:]
        head, separator, _ = base.rpartition("/")
        if not separator or head.endswith(("/", ":")):
            raise SourceError(f"submodule URL leads above the host of {redact(base)}: {url!r}")
        base = head
    return f"{base}/{url}"


def basename(url: str) -> str:
    """`kw-vendor` of https://gitee.com/kwdb/kw-vendor.git."""
    return re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git")


def suggest(ref: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Near misses of ref among the known names, best first: other case, then same beginning, then similar."""
    folded = ref.casefold()
    wanted = folded.removeprefix("refs/tags/").removeprefix("refs/heads/")
    same = [name for name in known if name.casefold() == wanted]
    numbers = re.sub(r"^v(?=\d)", "", wanted)
    begins = [name for name in known if re.sub(r"^v(?=\d)", "", name.casefold()).startswith(numbers)] if numbers else []
    lowered = {name.casefold(): name for name in reversed(known)}
    similar = [lowered[name] for name in difflib.get_close_matches(wanted, lowered, n=_SUGGESTIONS, cutoff=0.6)]
    near = dict.fromkeys([*same, *sorted(begins, key=len), *([] if same else similar)])
    return tuple(near)[:_SUGGESTIONS]


def parse_ls_remote(text: str) -> RemoteRefs:
    """Read `git ls-remote` (<hash> TAB <name>; an annotated tag's commit follows as <name>^{})."""
    tags: dict[str, str] = {}
    heads: dict[str, str] = {}
    for line in text.splitlines():
        oid, tab, name = line.partition("\t")
        if not tab or not is_full_commit(oid):
            continue
        if name.startswith("refs/heads/"):
            heads[name.removeprefix("refs/heads/")] = oid
        elif name.startswith("refs/tags/"):
            tags[name.removeprefix("refs/tags/").removesuffix("^{}")] = oid
    return RemoteRefs(tags=tags, heads=heads)


def choose(ref: str, refs: RemoteRefs, *, url: str) -> Target | None:
    """Decide what ref means: a whole hash is a commit, then tags and branches by exact name, then a short hash.

    None when it can be nothing here. The same name for a tag and a branch with different commits is refused: one
    mirror would build this, another one that. Names win over short hashes (KWDB has a branch called `1804`).
    """
    if ref == LATEST:
        return _latest(refs, url=url)
    if is_full_commit(ref):
        return Target(kind="commit", name=ref.lower(), commit=ref.lower())
    for prefix, kind, table in (("refs/tags/", "tag", refs.tags), ("refs/heads/", "branch", refs.heads)):
        name = ref.removeprefix(prefix)
        if ref.startswith(prefix):
            return Target(kind=kind, name=name, commit=table[name]) if name in table else None
    tag, head = refs.tags.get(ref), refs.heads.get(ref)
    if tag and head and tag != head:
        raise SourceError(
            f"{ref!r} is both a tag and a branch of {redact(url)}, with different commits",
            context=f"refs/tags/{ref}   {tag}\nrefs/heads/{ref}  {head}",
            hint=f"say which: refs/tags/{ref} or refs/heads/{ref}",
        )
    if tag:
        return Target(kind="tag", name=ref, commit=tag)
    if head:
        return Target(kind="branch", name=ref, commit=head)
    return Target(kind="commit", name=ref, commit=ref.lower()) if may_be_commit(ref) else None


def _latest(refs: RemoteRefs, *, url: str) -> Target:
    tag = latest_release(refs.tags)
    named = [f"refs/{kind}/{LATEST}" for kind, table in (("tags", refs.tags), ("heads", refs.heads)) if LATEST in table]
    if named:
        raise SourceError(
            f"{LATEST!r} means the highest release, and {redact(url)} has a {' and a '.join(named)} as well",
            hint=f"say which: {' or '.join([*([tag] if tag else []), *named])}",
        )
    if not tag:
        raise UnknownReferenceError(
            f"{redact(url)} has no release tag (V and numbers, such as V3.1.0)",
            context=f"it has {len(refs.tags)} tags: {', '.join(sorted(refs.tags)[:_SUGGESTIONS])}",
            hint="name a tag, a branch or a commit",
        )
    return Target(kind="tag", name=tag, commit=refs.tags[tag])


def unknown_reference(ref: str, refs: RemoteRefs, *, url: str) -> UnknownReferenceError:
    """The error for a reference that does not exist, with its near misses."""
    near = suggest(ref, refs.names)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    newest = ", ".join(sorted(refs.tags, key=_age, reverse=True)[:_SUGGESTIONS])
    has = f"it has {len(refs.tags)} tags and {len(refs.heads)} branches"
    return UnknownReferenceError(
        f"{redact(url)} has no tag, branch or commit {ref!r}",
        context=f"{has}; newest tags: {newest}" if newest else has,
        hint=f"{hint}names are case-sensitive: V3.1.0 and v3.1.0 are two tags",
    )


def _age(tag: str) -> tuple[bool, tuple[int, ...], str]:
    """Sort key of a tag: releases by their numbers, above all other names."""
    try:
        return True, Version.parse(tag).release, tag
    except ValueError:
        return False, (), tag
