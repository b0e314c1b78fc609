"""The identity of a build: everything that decides its bytes, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kwdb_build.build.recipe import RECIPE_VERSION, check_options, recipe_for
from kwdb_build.model import BuildKey

if TYPE_CHECKING:
    from kwdb_build.model import BuildOptions, SourceTree, Toolchain

KEY_FORMAT = 1
"""Raised when the shape of the inputs changes, so that an old key never means something new."""


def build_key(tree: SourceTree, toolchain: Toolchain, options: BuildOptions) -> BuildKey:
    """Key of building tree with toolchain and options; pure.

    The version text counts beside the commit: the same commit under another tag is stamped otherwise. Patches count by
    their bytes and order, archives and uncommitted changes by the digest of all files. Where the checkout lies, its
    URL, the number of jobs and the time of the build do not count. UsageError for an option that the recipe does not
    take.
    """
    check_options(options)
    source: dict[str, Any] = {
        "commit": tree.commit,
        "submodules": sorted([module.path, module.commit] for module in tree.submodules),
        "patches": [[patch.directory, patch.strip, patch.sha256] for patch in tree.patches],
    }
    if tree.changed or tree.origin in {"archive", "directory"}:
        source["content"] = tree.content  # no commit says what these files are
    if tree.submodule_mode != "pinned":
        source["submodule_mode"] = tree.submodule_mode
    return BuildKey.of(
        {
            "format": KEY_FORMAT,
            "source": source,
            "version": tree.version.text,
            "toolchain": {
                "name": toolchain.name,
                "architecture": toolchain.architecture,
                "lock": toolchain.lock_digest,
            },
            "recipe": {"name": recipe_for(tree.version).name, "version": RECIPE_VERSION},
            "options": {
                "build_type": options.build_type,
                "make_variables": sorted([name, value] for name, value in options.make_variables),
                "cmake_variables": sorted([name, value] for name, value in options.cmake_variables),
            },
        }
    )
