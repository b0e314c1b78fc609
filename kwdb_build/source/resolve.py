"""What a reference means: asked of the hosts of a repository, of its cache when none of them can be reached.

A name is asked anew each time, so that a moved branch or tag is noticed; a second host may stand in for the first one
only with the same commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, UnreachableSourceError
from kwdb_build.source.mirror import MissingError
from kwdb_build.source.reference import (
    LATEST,
    RemoteRefs,
    Target,
    choose,
    is_full_commit,
    may_be_commit,
    pull_request_ref,
    redact,
    unknown_reference,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kwdb_build.source.mirror import Mirror
    from kwdb_build.source.sources import Source

_MOVED_SAID = 3
"""Tags that moved are named up to here, and counted beyond."""


def meaning(mirror: Mirror, source: Source, ref: str, refs: RemoteRefs) -> Target | None:
    """What ref means at source, which has refs: commit, tag, branch, pull request or another full ref name."""
    found = choose(ref, refs, url=mirror.url)
    if found is not None:
        return found
    name = pull_request_ref(ref) or ref
    if not name.startswith("refs/") or name.startswith(("refs/heads/", "refs/tags/")):
        return None
    commit = mirror.ask_exact(source, name)
    return Target(kind="ref", name=name, commit=commit) if commit else None


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """Resolves references of one repository, whose cache is at path (for fetching: held by Mirror.locked())."""

    mirror: Mirror
    path: Path

    def resolve(self, ref: str) -> Target:
        """Find and fetch what ref means; afterwards the history of its commit and all tags are in the cache.

        A whole commit hash that is there already needs no network. For a name the other side is asked, so that a moved
        branch or tag is noticed. When nobody can be reached, a tag or commit that is in the cache is good enough (and
        said so); a branch is not, as it may have moved. Offline even that one is taken as of the last fetch.
        """
        if is_full_commit(ref) and self.mirror.has_commit(self.path, ref.lower()):
            return Target(kind="commit", name=ref.lower(), commit=ref.lower())
        if self.mirror.sources.offline:
            return self.cached(ref)
        pinned: list[Target] = []
        try:
            return self.mirror.sources.each(self.mirror.ways, lambda source: self._resolve_at(source, ref, pinned))
        except UnreachableSourceError as error:
            if pinned:
                raise  # somebody has said what it is now: what the cache knows may be older
            return self._unreachable(ref, error)

    def _resolve_at(self, source: Source, ref: str, pinned: list[Target]) -> Target:
        refs = self.mirror.ask(source)
        target = meaning(self.mirror, source, ref, refs)
        if target is None and not pinned:
            raise unknown_reference(ref, refs, url=source.shown)
        if source is not self.mirror.ways[0] and target is not None:
            self._require_agreement(source, ref, target, pinned)
            self.mirror.client.progress.note(f"{ref} is {target.commit[:12]} according to {redact(source.address)}")
        target = pinned[0] if pinned else target
        if target is None:
            raise unknown_reference(ref, refs, url=source.shown)
        short = target.kind == "commit" and not is_full_commit(target.commit)
        if not short and not pinned:
            pinned.append(target)
        known = not short and self.mirror.has_commit(self.path, target.commit)
        before = self.mirror.cached_refs(self.path).tags
        if not known or before != refs.tags:
            self.mirror.fetch_all(self.path, source)
            self._say_moved(before, refs.tags)
        if short:
            target = self._expand(target, refs)
        self.mirror.require_kind(self.path, target.commit)
        if not self.mirror.has_commit(self.path, target.commit):
            missing = unknown_reference(ref, refs, url=source.shown)
            self.mirror.fetch_alone(self.path, source, target.commit, missing=missing)
        self.mirror.keep(self.path, target.commit)
        return target

    def _say_moved(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        """A release is not published twice under one name: who fetched it before should know."""
        moved = [tag for tag in before if now.get(tag, before[tag]) != before[tag]]
        for tag in moved[:_MOVED_SAID]:
            self.mirror.client.progress.note(
                f"the tag {tag} has moved since the last fetch, from {before[tag][:12]} to {now[tag][:12]}: "
                f"ask who keeps {redact(self.mirror.url)} why"
            )
        if len(moved) > _MOVED_SAID:
            self.mirror.client.progress.note(f"so have {len(moved) - _MOVED_SAID} other tags")

    def _require_agreement(self, source: Source, ref: str, target: Target, pinned: list[Target]) -> None:
        """A mirror may stand in for the first host only with the same commit: the one named by it, or known from it."""
        known = pinned[0] if pinned else None
        if known is None and target.kind == "ref":
            raise SourceError(
                f"{redact(source.address)} is not asked for {ref!r}: each host counts its own pull requests",
                hint="try again when the first host answers, or name the commit",
            )
        if known is None and target.kind == "tag":
            before = self.mirror.cached_refs(self.path).tags.get(target.name, "")
            known = Target(kind="tag", name=target.name, commit=before) if before else None
        if known is not None and known.commit != target.commit and is_full_commit(known.commit):
            raise SourceError(
                f"{redact(source.address)} means {target.commit[:12]} by {ref!r} and not "
                f"{known.commit[:12]}: it is refused",
                context=f"{known.commit}  {self.mirror.address}\n{target.commit}  {redact(source.address)}",
                hint=f"look into it before you trust that mirror; the commit itself can be named: {known.commit}",
            )

    def cached(self, ref: str) -> Target:
        """What ref means without asking anybody; MissingError when that is not known or its commit is not here."""
        refs = self.mirror.cached_refs(self.path)
        # A cache without tags has no release: that is no answer, but something missing.
        target = choose(ref, refs, url=self.mirror.url) if refs.names or ref != LATEST else None
        name = pull_request_ref(ref)
        if target is None and name and (kept := dict(self._pulls()).get(name)):
            target = Target(kind="ref", name=name, commit=kept)
        if target is not None and target.kind == "commit":
            target = self._expand(target, refs)
        if target is None or not self.mirror.has_commit(self.path, target.commit):
            raise MissingError(f"{ref!r} of {redact(self.mirror.url)} is not in the cache")
        if target.kind in {"branch", "ref"}:
            self.mirror.client.progress.note(f"{target.name} as of the last fetch: {target.commit[:12]}")
        return target

    def _pulls(self) -> list[tuple[str, str]]:
        kept = self.mirror.record(self.path).get("refs")
        return [(str(name), str(commit)) for name, commit in kept.items()] if isinstance(kept, dict) else []

    def _unreachable(self, ref: str, error: UnreachableSourceError) -> Target:
        refs = self.mirror.cached_refs(self.path)
        if ref == LATEST:
            raise error
        target = choose(ref, refs, url=self.mirror.url)
        if target is None or target.kind == "branch":
            raise error
        if target.kind == "commit":
            if not may_be_commit(target.commit) or not self.mirror.has_commit(self.path, target.commit):
                raise error
            target = self._expand(target, refs)
        self.mirror.client.progress.note(
            f"{redact(self.mirror.url)} cannot be reached ({error.message.rpartition(': ')[2]}); "
            f"using {target.kind} {target.name} = {target.commit[:12]} from the cache"
        )
        return target

    def _expand(self, target: Target, refs: RemoteRefs) -> Target:
        """A short hash to the whole one; ambiguous and unknown ones are refused."""
        found = self.mirror.client.run(
            "rev-parse", f"--disambiguate={target.commit}", cwd=self.path, what="reading the cache", check=False
        ).stdout.split()
        commits = [oid for oid in found if self.mirror.kind(self.path, oid) == "commit"]
        if not commits:
            raise unknown_reference(target.name, refs, url=self.mirror.url)
        if len(commits) > 1:
            raise SourceError(
                f"{target.name!r} is the beginning of {len(commits)} commits", context="\n".join(sorted(commits)[:5]),
                hint="give more digits of the hash",
            )
        return Target(kind="commit", name=target.name, commit=commits[0])

    def remember(self, target: Target) -> None:
        """Write down what a pull request was, for a later call without network."""
        if target.kind == "ref":
            self.mirror.write(self.path, {"refs": dict(self._pulls()) | {target.name: target.commit}})

