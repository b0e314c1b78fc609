"""One Settings model: defaults < kwdb-build.toml < KWDB_BUILD_* environment < flags.

The file is looked for at --config, then ./kwdb-build.toml, then <home>/kwdb-build.toml. An unknown key is refused with
the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "KWDB_BUILD_"
FILE_NAME = "kwdb-build.toml"
RESERVED_VARIABLES = {"KWDB_BUILD_FAILPOINT"}
"""Environment variables of ours that are no settings."""
_LISTS = ("redirect", "profile", "skip", "allowed_hosts", "allowed_schemes", "make_var", "cmake_var")
"""Settings that are several words in an environment variable."""
MOST_JOBS = 1024
"""make puts a byte for each job into a pipe before it starts any, and waits without end when that is full."""


def default_home() -> Path:
    """Where runs, builds and backups live: /var/lib for root, as they must outlive a home directory; XDG otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/kwdb-build")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "kwdb-build"


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class Settings(BaseModel):
    """Everything that can be set, with its default and its meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Field(default_factory=default_home, description="runs, builds, caches and backups")
    url: str = Field("https://gitee.com/kwdb/kwdb.git", description="git URL or local repository of the source")
    redirect: tuple[str, ...] = Field((), description="PREFIX=PREFIX pairs for git URLs (mirrors, submodules)")
    profile: tuple[str, ...] = Field(
        ("gitee", "github"), description="places to fetch from, in the order of fall-back: gitee, github, local, own"
    )
    profiles: dict[str, dict[str, str]] = Field(
        default_factory=dict, description='own profiles: [profiles.NAME] tables of "PREFIX" = "PREFIX"'
    )
    submodules: Literal["pinned", "remote"] = Field(
        "pinned", description="pinned: as the tree says; remote: the tips of their branches (README's --remote)"
    )
    offline: bool = Field(False, description="fetch nothing: only what is here, or a list of what is missing")
    skip: tuple[str, ...] = Field(
        ("qa", "kwbase/pkg/cmd/roachtest/fixtures"),
        description="directories of the source that no build needs and that are not fetched; [] fetches all",
    )
    stall_timeout_s: float = Field(120, gt=0, description="how long a host may be silent before the next one is tried")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="hosts that sources may come from, such as gitee.com or *.example.com; empty: any"
    )
    allowed_schemes: tuple[Literal["https", "http", "ssh", "git", "file"], ...] = Field(
        ("https", "http", "ssh", "git", "file"), description="kinds of URL that sources may come from"
    )
    require_signature: Literal["", "tag", "commit", "any"] = Field(
        "", description="what must be signed: tag, commit, any of both; empty: nothing"
    )
    allowed_signers: Path | None = Field(None, description="ssh: file of allowed signers (ssh-keygen -Y)")
    keyring: Path | None = Field(None, description="gpg: file of exported public keys")
    bundle_key: Path | None = Field(
        None, description="ssh public key (or file of allowed signers) that bundles must be signed by; empty: not asked"
    )
    toolchain: str = Field("", description="toolchain name or folder; empty: chosen from the fetched tree")
    engine: str = Field(
        "", pattern="^(docker|podman|sandbox)?$", description="docker, podman or sandbox; empty: the first that works"
    )
    docker_host: str = Field("", description="address of the Docker engine; empty: as the docker client's own context")
    build_type: str = Field("Release", description="CMake build type")
    asan: bool = Field(False, description="build with the address sanitizer (KWDB's WITH_ASAN)")
    make_var: tuple[str, ...] = Field((), description="NAME=VALUE pairs for KWDB's Makefiles")
    cmake_var: tuple[str, ...] = Field((), description="NAME=VALUE pairs for KWDB's CMake files")
    sign: str = Field("", description="sign builds: ssh:KEYFILE, gpg:KEYID or minisign:KEYFILE; empty: not at all")
    sign_passphrase_file: Path | None = Field(None, description="file with the passphrase of that key")
    jobs: int = Field(0, ge=0, le=MOST_JOBS, description="parallel compile jobs; 0: from cores and memory")
    cpus: float = Field(
        0, ge=0, allow_inf_nan=False,
        description="processors that the build container may use, such as 1.5; 0: all",
    )
    memory: str = Field("", description="memory limit of the build container such as 8g; empty: none")
    use_cache: bool = Field(True, description="take what earlier builds compiled, and keep what this one does")
    cache_size: str = Field("10g", description="how large the caches of one toolchain may grow")
    cache_remote: str = Field(
        "", description="a compiler cache to share: redis://HOST:PORT[/DB], http(s)://[USER@]HOST[:PORT]/PATH or "
        "file:/DIRECTORY; empty: none",
    )
    cache_remote_password_file: Path | None = Field(
        None, description="file with the password of that cache (for HTTP without USER: a token)"
    )
    stop_timeout_s: float = Field(600, gt=0, description="how long the old server may drain before we ask or give up")
    force_stop_after_s: float = Field(0, ge=0, description="SIGKILL a server that drains longer; 0: never")
    start_timeout_s: float = Field(300, gt=0, description="how long a server may take to become ready")
    stop_cmd: str = Field("", description="command that stops the server, for supervisors that are not supported")
    start_cmd: str = Field("", description="command that starts it again; both are run without a shell")
    settle_s: float = Field(5, ge=0, description="pause before the second look at a started server")
    sql_user: str = Field("root", description="SQL user for the checks")
    sql_password_file: Path | None = Field(None, description="file with that user's password")
    statement_timeout_s: float = Field(300, gt=0, description="time limit of each statement of the checks")
    verify_timeout_s: float = Field(3600, gt=0, description="time limit of the whole verification suite")
    apt_sources: Annotated[str, BeforeValidator(_as_text)] = Field(
        "", description="URL of a Debian mirror, or apt sources (.list or .sources); empty: this machine's own"
    )
    base_image: str = Field(
        "", description="a Debian image to start build images from: NAME@sha256:…, or a file (root file system or "
        "docker save); empty: bootstrapped by mmdebstrap"
    )
    registry: str = Field("", description="prefix for a base_image without a registry, such as mirror.example/hub")
    http_proxy: str = Field("", description="proxy for http:// downloads; empty: as the environment has it")
    https_proxy: str = Field("", description="proxy for https:// downloads; empty: as the environment has it")
    no_proxy: str = Field("", description="hosts that are reached without a proxy; empty: as the environment has it")
    strict_lock: bool = Field(
        False, description="refuse when a locked package is gone from the mirrors, instead of resolving anew"
    )
    pip_index_url: str = Field("", description="Python package index for wheels; empty: pip's own configuration")
    ca_bundle: Path | None = Field(None, description="additional certificate authorities for downloads (a proxy's own)")


def load(overrides: Mapping[str, Any], *, config: Path | None = None) -> Settings:
    """Merge all layers; UsageError names the layer, the key and the nearest known one."""
    merged: dict[str, Any] = {}
    for origin, values in _layers(overrides, config):
        for key in values:
            if key not in Settings.model_fields:
                close = difflib.get_close_matches(key, Settings.model_fields, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(Settings.model_fields))}"
                raise UsageError(f"unknown setting {key!r} in {origin}", hint=hint)
        merged |= values
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name}: {first['msg']}", context=f"given: {first.get('input')!r}") from error


def _layers(overrides: Mapping[str, Any], config: Path | None) -> list[tuple[str, dict[str, Any]]]:
    environment = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in RESERVED_VARIABLES
    }
    for name in _LISTS:
        if isinstance(words := environment.get(name), str):
            environment[name] = tuple(words.split())  # type: ignore[assignment]
    given = {key: value for key, value in overrides.items() if value is not None and value != ()}
    home = Path(str(given.get("home") or environment.get("home") or default_home()))
    candidates = [config] if config else [Path.cwd() / FILE_NAME, home / FILE_NAME]
    layers: list[tuple[str, dict[str, Any]]] = []
    for candidate in candidates:
        if config is not None and not candidate.is_file():
            raise UsageError(f"no settings file at {candidate}")
        if candidate.is_file():
            try:
                layers.append((str(candidate), tomllib.loads(candidate.read_text(encoding="utf-8"))))
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"{candidate} is not valid TOML", context=str(error)) from error
            break
    return [*layers, ("the environment", dict(environment)), ("the command line", dict(given))]
