"""A look at what a fetch would do, without fetching: asks the other side, reads the cache, writes to neither."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError
from kwdb_build.model import SOURCE_SUFFIX
from kwdb_build.source.checkout import missing_error, place_name
from kwdb_build.source.client import GitClient
from kwdb_build.source.fetch import absolute_url
from kwdb_build.source.inspect import read_tree
from kwdb_build.source.mirror import Mirror, MissingError
from kwdb_build.source.reference import is_full_commit, redact, unknown_reference, validate_ref, validate_url
from kwdb_build.source.resolve import Resolver, meaning
from kwdb_build.source.sources import Sources

if TYPE_CHECKING:
    from kwdb_build.model import SourceTree
    from kwdb_build.source.fetch import SourceRequest
    from kwdb_build.source.reference import Target
    from kwdb_build.source.sources import Source


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a reference means now (a short hash stays short), and the checkout when there is one already."""

    commit: str
    tree: SourceTree | None


def preview(request: SourceRequest, *, home: Path) -> Preview:
    """Ask the remote for its references; UnknownReferenceError and UnreachableSourceError as a fetch would raise."""
    ref = validate_ref(request.ref)
    sources = Sources(request.ways(), policy=request.policy, offline=request.offline)
    client, url = GitClient(redirects=sources.profiles[0].redirects).with_url(absolute_url(validate_url(request.url)))
    if request.offline:
        commit = _offline(Mirror(url=url, home=home.absolute(), client=client, sources=sources), ref)
        return _described(request, commit, url=url, home=home, client=client)
    # git wants a directory to start in; nothing stays in it.
    with tempfile.TemporaryDirectory(prefix="kwdb-build-plan-") as scratch:
        mirror = Mirror(url=url, home=Path(scratch), client=client, sources=sources)

        def look(source: Source) -> Target:
            refs = mirror.ask(source)
            found = meaning(mirror, source, ref, refs)
            if found is None:
                raise unknown_reference(ref, refs, url=url)
            return found

        commit = _known(request, ref, home) or sources.each(mirror.ways, look).commit
    return _described(request, commit, url=url, home=home, client=client)


def _offline(mirror: Mirror, ref: str) -> str:
    """What the cache knows, read and not touched."""
    if not mirror.path.is_dir():
        raise missing_error([f"nothing of {redact(mirror.url)} is in the cache"])
    try:
        return Resolver(mirror=mirror, path=mirror.path).cached(ref).commit
    except MissingError as error:
        raise missing_error([error.message]) from error


def _described(request: SourceRequest, commit: str, *, url: str, home: Path, client: GitClient) -> Preview:
    place = home.absolute() / "source" / place_name(commit, skip=request.skip) / SOURCE_SUFFIX
    if not place.is_dir() or request.remote_submodules:
        return Preview(commit=commit, tree=None)
    try:
        return Preview(commit=commit, tree=read_tree(place, url=url, ref=request.ref, client=client))
    except SourceError:
        return Preview(commit=commit, tree=None)  # a fetch makes such a checkout again


def _known(request: SourceRequest, ref: str, home: Path) -> str:
    """A whole commit hash that is checked out already needs no asking, as in a fetch."""
    whole = is_full_commit(ref) and (home / "source" / place_name(ref.lower(), skip=request.skip)).is_dir()
    return ref.lower() if whole else ""
