"""The group of all verbs. Each lives in a module of its own, imported only when it is called or described."""

from __future__ import annotations

import contextlib
import errno
import importlib
import sys
import traceback
from typing import Any

import click

from kwdb_build import __version__
from kwdb_build.errors import (
    AccessError,
    ExitCode,
    InterruptedByUserError,
    KwdbBuildError,
    SpaceError,
    UsageError,
)

_VERBS = {
    "upgrade": ("run", "Upgrade a running kwbase to a git reference, or go back by itself."),
    "plan": ("run", "Show what an upgrade would do, and why; change nothing."),
    "resume": ("run", "Go on with a run that was cut off."),
    "rollback": ("run", "Take a run back: old binary, old libraries, old data."),
    "abandon": ("run", "Close a cut-off run by hand, without doing anything."),
    "status": ("runs", "What runs here, and how the last run stands."),
    "history": ("runs", "All runs."),
    "logs": ("runs", "Log files of a run."),
    "report": ("runs", "Summary of a run, and where its report is."),
    "servers": ("server", "kwbase servers on this machine."),
    "capture": ("server", "The start command of a running kwbase."),
    "restart": ("server", "Stop a running kwbase and start it with the same command."),
    "verify": ("server", "Run the verification suite against the last baseline."),
    "fetch": ("building", "Fetch the source of a reference with its pinned submodules."),
    "check": ("checking", "Check what a reference asks for: build image, host, machine."),
    "build": ("building", "Build a reference into a stored artifact."),
    "build-cache": ("build_cache", "What builds leave for the next one: list, prune."),
    "doctor": ("doctor", "Look at this tool and its surroundings, for a bug report."),
    "bundle": ("bundle", "One file for a machine without network: create, show, verify."),
    "source": ("source", "What a build contained beside its upstream commits: diff."),
    "image": ("image", "Make a container image of a stored build, or of a reference."),
    "artifact": ("artifact", "Stored builds: list, show, verify, export, import, sign, prune."),
    "toolchain": ("toolchain", "Toolchains: list, show, lock, build, export, import."),
    "cache": ("cache", "Fetched sources: list, prune."),
}


class _Verbs(click.Group):
    """Finds a verb's module when it is needed, so that --help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table above, not the alphabet's."""
        del ctx
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb."""
        del ctx
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"kwdb_build.cli.{_VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        del ctx
        with formatter.section("Verbs"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in _VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for an unknown one."""
        import difflib

        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], _VERBS, n=1)
            ctx.fail(f"no verb {args[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kwdb-build")
def kwdb_build() -> None:
    """Source-build upgrades for KWDB, with a verified backup, a gate and a way back.

    Settings: defaults < kwdb-build.toml < KWDB_BUILD_* environment < options. Exit codes: see README.
    """


def main(argv: list[str]) -> int:
    """Run one verb and turn its end into an exit code."""
    as_json = "--json" in argv
    try:
        result: Any = kwdb_build.main(args=argv, prog_name="kwdb-build", standalone_mode=False)
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        if as_json:
            _answer(UsageError(error.format_message()))
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes the one of the other
        with contextlib.suppress(OSError):
            sys.stderr.write("stopped on request\n")
        if as_json:
            _answer(InterruptedByUserError("stopped on request"))
        return int(ExitCode.INTERRUPTED)
    except KwdbBuildError as error:
        _show(error, as_json=as_json)
        return int(error.exit_code)
    except BrokenPipeError:
        return 1  # `kwdb-build --help | head`: who closed the pipe knows why
    except Exception as error:  # noqa: BLE001  (even a defect ends in words and a documented exit code)
        shown = _refusal(error) or _defect(error)
        _show(shown, as_json=as_json)
        return int(shown.exit_code)
    return result if isinstance(result, int) else 0


def _show(error: KwdbBuildError, *, as_json: bool) -> None:
    from kwdb_build.console import Console

    Console(as_json=as_json).error(error)
    if as_json:
        _answer(error)


def _answer(error: KwdbBuildError) -> None:
    """The error as the JSON document that --json promises."""
    from kwdb_build.console import Console, OutputError

    with contextlib.suppress(OutputError):  # a closed stdout must not change the exit code
        Console(as_json=True).data({"error": error.as_dict(), "result": getattr(error, "result", None)})


def _refusal(error: Exception) -> KwdbBuildError | None:
    """What the operating system refused, wherever that was: a full disk, a place that this user may not write to."""
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return SpaceError(
            f"{where}{error.strerror}", hint="free space there, or choose another place with --home"
        )
    if error.filename and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return AccessError(
            f"{where}{error.strerror}", hint="run it as the user who owns that, or choose another place with --home"
        )
    return None


def _defect(error: Exception) -> KwdbBuildError:
    return KwdbBuildError(
        f"unexpected {type(error).__name__}: {error}", context="".join(traceback.format_exception(error)[-3:]).rstrip(),
        hint="this is a defect of kwdb-build, please report it; `kwdb-build status` tells how things stand",
    )
