"""The environment that git runs in: the user's own, minus what would lead it astray, plus our fixed settings.

Settings go in by GIT_CONFIG_COUNT, so no file is written and .gitmodules is never edited. The user's configuration
stays in force on purpose: proxies, certificate authorities, credential helpers and his own insteadOf live there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kwdb_build.source.reference import Credentials, Redirect, split_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNSET = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_CEILING_DIRECTORIES", "GIT_QUARANTINE_PATH",
    "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_TEMPLATE_DIR", "GIT_EXTERNAL_DIFF", "GIT_ATTR_SOURCE",
    "GIT_DEFAULT_HASH", "GIT_PROTOCOL_FROM_USER", "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
)
"""Variables that point git at another repository (set inside hooks) or change what a path or protocol means."""

FIXED = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GCM_INTERACTIVE": "never",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    # A cache may hold part of the objects: what is missing is fetched when we say so, never in the middle of a reading.
    "GIT_NO_LAZY_FETCH": "1",
}

CONFIG = (
    # Nothing that comes with a tree, a template or a machine's set-up runs or rewrites content: the same commit must
    # give the same bytes everywhere.
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("init.templateDir", ""),
    ("filter.lfs.process", ""),
    ("filter.lfs.smudge", ""),
    ("filter.lfs.clean", ""),
    ("filter.lfs.required", "false"),
    # One pack a fetch (hard-linkable, counted by `describe`), no housekeeping behind our back.
    ("fetch.unpackLimit", "1"),
    ("transfer.unpackLimit", "1"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    ("clone.defaultRemoteName", "origin"),
    ("transfer.bundleURI", "false"),
    ("protocol.ext.allow", "never"),
    # With it a host gives single objects by their hash.
    ("protocol.version", "2"),
    ("advice.detachedHead", "false"),
)
LOW_SPEED_BYTES = 1000


def git_environment(
    base: Mapping[str, str],
    *,
    redirects: Iterable[Redirect] = (),
    credentials: Mapping[str, Credentials] | None = None,
    stall_timeout_s: float = 60,
    extra: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    """Variables to lay over base. credentials maps scheme://host[:port] to what that host wants.

    Passwords travel in the environment only (readable by the same user alone), handed over by a credential helper
    made of shell's printf: they appear in no argument list and in no file.
    """
    result = dict(FIXED)
    pairs = [
        *CONFIG,
        ("http.lowSpeedLimit", str(LOW_SPEED_BYTES)),
        ("http.lowSpeedTime", str(max(1, round(stall_timeout_s)))),
    ]
    known = dict(credentials or {})
    for redirect in redirects:
        clean, secret = split_credentials(redirect.replacement)
        pairs.append((f"url.{clean}.insteadOf", redirect.prefix))
        if secret is not None:
            known[origin_of(clean)] = secret
    for number, (origin, secret) in enumerate(known.items()):
        user, password = f"GIT_SOURCE_USER_{number}", f"GIT_SOURCE_PASSWORD_{number}"
        result |= {user: secret.user, password: secret.password}
        answer = f"test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \"${user}\" \"${password}\""
        # The empty value drops the user's helpers for this host: they would not know it, or store it.
        pairs += [(f"credential.{origin}.helper", ""), (f"credential.{origin}.helper", f"!f() {{ {answer}; }}; f")]
    pairs += extra
    first = int(base["GIT_CONFIG_COUNT"]) if base.get("GIT_CONFIG_COUNT", "").isdigit() else 0
    for number, (key, value) in enumerate(pairs, start=first):
        result |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    result["GIT_CONFIG_COUNT"] = str(first + len(pairs))
    return result


def origin_of(url: str) -> str:
    """scheme://host[:port] of an http(s) URL."""
    return "/".join(url.split("/", 3)[:3])
