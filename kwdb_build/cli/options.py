"""Options that several verbs share, and how a verb becomes an exit code."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kwdb_build.config import Settings
    from kwdb_build.console import Console

_PATH = click.Path(path_type=Path)

_COMMON = (
    click.option("--home", type=_PATH, help="Where runs, builds, caches and backups live."),
    click.option("--config", type=_PATH, help="Settings file (default: ./kwdb-build.toml, or the one in home)."),
    click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document on stdout."),
)
_SOURCE = (
    click.option("--url", help="git URL or local repository (default: KWDB on gitee)."),
    click.option("--redirect", multiple=True, metavar="PREFIX=PREFIX",
                 help="Fetch URLs that begin with the first prefix from the second one (submodules too). Repeatable."),
    click.option("--profile", multiple=True, metavar="NAME",
                 help="Fetch by this profile: gitee, github, local or an own one. Repeatable: the order of fall-back."),
    click.option("--submodules", type=click.Choice(["pinned", "remote"]),
                 help="Submodules as the tree pins them (default), or at the tips of their branches."),
    click.option("--offline", is_flag=True, default=None, help="Fetch nothing; list what is missing before anything."),
)
_ORIGIN = (
    click.option("--source", "local", type=_PATH, metavar="FILE|DIR",
                 help="Archive, directory or git checkout to build instead of REF."),
    click.option("--source-version", metavar="VERSION", help="What that source is, when its name does not say it."),
    click.option("--dirty", is_flag=True, help="Build uncommitted changes of a checkout, too."),
    click.option("--submodule", "submodule_sources", multiple=True, metavar="PATH=FILE|DIR",
                 help="What holds a submodule of an archive or directory. Repeatable."),
    click.option("--patch", "patches", multiple=True, metavar="[DIRECTORY=]FILE|DIR",
                 help="Patch, or directory of patches (quilt series, git format-patch), on top of it all. Repeatable."),
)
_BUNDLE = (
    click.option("--bundle", type=_PATH, metavar="FILE", help="Source, patches and toolchain from this bundle alone."),
    click.option("--bundle-key", type=_PATH, metavar="FILE", help="ssh public key that the bundle must be signed by."),
)
_SERVER = (
    click.option("--pid", type=int, help="The server with this process id."),
    click.option("--store", type=_PATH, help="The server with this store directory."),
    click.option("--listen-addr", "listen", help="The server that listens here, such as 127.0.0.1:26257."),
)
_COMMANDS = (
    click.option("--stop-cmd", metavar="COMMAND", help="Stop the server by this command (no shell), and wait for it."),
    click.option("--start-cmd", metavar="COMMAND", help="Start it by this command, which must end when that is begun."),
)
_WAITS = (
    click.option("--stop-timeout", "stop_timeout_s", type=float, metavar="S", help="How long the server may drain."),
    click.option("--force-stop-after", "force_stop_after_s", type=float, metavar="S",
                 help="Kill a server that drains longer (KWDB may lose rows by that; default: never)."),
    click.option("--start-timeout", "start_timeout_s", type=float, metavar="S", help="How long a start may take."),
)
_BUILD = (
    click.option("--toolchain", help="Toolchain name or folder (default: the one that serves the fetched version)."),
    click.option("--engine", type=click.Choice(["docker", "podman", "sandbox"]),
                 help="Where to build (default: the first that works of the three)."),
    click.option("--docker-host", help="Docker engine to use (default: as the docker command does)."),
    click.option("--build-type", type=click.Choice(["Release", "Debug"]), help="CMake build type (default: Release)."),
    click.option("--sign", metavar="KIND:KEY", help="Sign the build: ssh:KEYFILE, gpg:KEYID or minisign:KEYFILE."),
    click.option("--jobs", "-j", type=click.IntRange(min=0, max=1024),
                 help="Compile jobs (default: from cores and memory)."),
    click.option("--cpus", type=click.FloatRange(min=0), metavar="N",
                 help="Processors that the build container may use, such as 1.5 (default: all)."),
    click.option("--memory", help="Memory limit of the build container, such as 8g."),
    click.option("--make-var", multiple=True, metavar="NAME=VALUE", help="Variable for KWDB's Makefiles. Repeatable."),
    click.option("--cmake-var", multiple=True, metavar="NAME=VALUE", help="Variable for KWDB's CMake. Repeatable."),
    click.option("--asan", is_flag=True, default=None, help="Build with the address sanitizer."),
    click.option("--cache/--no-cache", "use_cache", default=None,
                 help="Take what earlier builds compiled (default), or compile everything anew, without ccache."),
)


def password(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the SQL user. A typed password becomes the password file of this call, and is on no disk."""

    @click.option("--sql-user", help="SQL user of the checks (default: root).")
    @click.option("--sql-password-file", type=click.Path(), help="File with that user's password.")
    @click.option("--ask-sql-password", is_flag=True, help="Type that password instead of naming a file.")
    @functools.wraps(function)
    def call(console: Console, settings: Settings, *, ask_sql_password: bool, **options: Any) -> Any:
        for name in ("sql_user", "sql_password_file"):  # they are in the settings
            options.pop(name)
        if ask_sql_password:
            settings = settings.model_copy(update={"sql_password_file": typed_password(settings.sql_user)})
        return function(console, settings, **options)

    return call


def typed_password(user: str) -> Path:
    """Ask for a password; the path of a file in memory that this process and its children can read."""
    import getpass
    import os

    fd = os.memfd_create("sql-password")
    os.write(fd, getpass.getpass(f"SQL password of {user}: ").encode())
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


def stack(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    """One decorator for several options, shown in the order given."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


common = stack(_COMMON)
source = stack((*_SOURCE, *_ORIGIN, *_BUNDLE))
plain_source = stack((*_SOURCE, *_ORIGIN))
bundle_key = _BUNDLE[1]
server = stack(_SERVER)
commands = stack(_COMMANDS)
waits = stack(_WAITS)
building = stack(_BUILD)


def console_of(options: Mapping[str, Any]) -> Console:
    """The console of this call."""
    from kwdb_build.console import Console

    return Console(as_json=bool(options.get("as_json")))


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Merge defaults, file, environment and the flags that are settings."""
    from kwdb_build import config, network

    flags = {name: value for name, value in options.items() if name in config.Settings.model_fields}
    settings = config.load(flags, config=options.get("config"))
    network.apply(settings)
    return settings


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb takes (console, settings, **its own options): made here from the common ones."""

    @functools.wraps(function)
    def call(**options: Any) -> Any:
        console = console_of(options)
        settings = settings_of(options)
        for name in ("home", "config", "as_json"):
            options.pop(name, None)
        return function(console, settings, **options)

    return call
