"""A look at what a fetch would do, without fetching: asks the other side, reads the cache, writes to neither."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError
from kwdb_build.model import SOURCE_SUFFIX
from kwdb_build.source.client import GitClient
from kwdb_build.source.fetch import absolute_url
from kwdb_build.source.inspect import read_tree
from kwdb_build.source.mirror import Mirror
from kwdb_build.source.reference import choose, unknown_reference, validate_ref, validate_url

if TYPE_CHECKING:
    from kwdb_build.model import SourceTree
    from kwdb_build.source.fetch import SourceRequest


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a reference means now (a short hash stays short), and the checkout when there is one already."""

    commit: str
    tree: SourceTree | None


def preview(request: SourceRequest, *, home: Path) -> Preview:
    """Ask the remote for its references; UnknownReferenceError and UnreachableSourceError as a fetch would raise."""
    ref = validate_ref(request.ref)
    redirects = tuple(replace(item, replacement=absolute_url(item.replacement)) for item in request.redirects)
    client, url = GitClient(redirects=redirects).with_url(absolute_url(validate_url(request.url)))
    # git wants a directory to start in; nothing stays in it.
    with tempfile.TemporaryDirectory(prefix="kwdb-build-plan-") as scratch:
        refs = Mirror(url=url, home=Path(scratch), client=client).ask()
    target = choose(ref, refs, url=url)
    if target is None:
        raise unknown_reference(ref, refs, url=url)
    place = home.absolute() / "source" / target.commit / SOURCE_SUFFIX
    if not place.is_dir():
        return Preview(commit=target.commit, tree=None)
    try:
        return Preview(commit=target.commit, tree=read_tree(place, url=url, ref=ref, client=client))
    except SourceError:
        return Preview(commit=target.commit, tree=None)  # a fetch makes such a checkout again
