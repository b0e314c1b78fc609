"""Units of systemd, asked through systemctl: whose they are, how they stand. Parsers are pure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kwdb_build import command

SYSTEM = "systemd:"
USER = "systemd-user:"
_PROPERTIES = (
    "LoadState", "LoadError", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "MainPID", "Type",
    "KillMode", "KillSignal", "ExecStop", "FragmentPath", "RefuseManualStart", "RefuseManualStop", "ExecMainCode",
    "ExecMainStatus", "Result", "Job", "EnvironmentFiles", "TimeoutStopUSec",
)
_CALL_TIMEOUT_S = 60.0
_ARGV = re.compile(r"argv\[\]=(?P<argv>.*?) ; (?:ignore_errors|flags)=")
_PLAIN_KILL = re.compile(
    r"^(?:\S*/)?(?:(?:ba|da)?sh -c )?(?:\S*/)?kill (?:-s (?:SIG)?TERM |-(?:SIG)?TERM |-15 )?\$\{?MAINPID\}?$"
)
"""An ExecStop= that only does what systemd does next by itself: send SIGTERM to the main process."""
_KILLED = frozenset({2, 3})
"""CLD_KILLED and CLD_DUMPED, as ExecMainCode= gives them."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit of the machine's manager, or of the manager of the user with that uid."""

    name: str
    uid: int | None = None

    @classmethod
    def parse(cls, supervisor: str) -> Unit | None:
        """From what a deployment calls its supervisor; None when that is no unit."""
        if supervisor.startswith(SYSTEM):
            return cls(name=supervisor.removeprefix(SYSTEM))
        if supervisor.startswith(USER):
            uid, _, name = supervisor.removeprefix(USER).partition(":")
            return cls(name=name, uid=int(uid))
        return None

    def __str__(self) -> str:
        return f"{SYSTEM}{self.name}" if self.uid is None else f"{USER}{self.uid}:{self.name}"

    @property
    def runtime(self) -> Path:
        """Where the manager looks for units and drop-ins that a reboot forgets."""
        if self.uid is None:
            return Path("/run/systemd/system")
        return Path(f"/run/user/{self.uid}/systemd/user")

    @property
    def drop_in_directory(self) -> Path:
        """The unit's own drop-ins among them."""
        return self.runtime / f"{self.name}.d"

    def call(self, *words: str, program: str = "systemctl", timeout_s: float = _CALL_TIMEOUT_S) -> command.Completed:
        """Ask the unit's manager. Errors: CommandError."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SYSTEMD_COLORS": "0"}
        if self.uid is None:
            return command.run([program, *words], env=environment, timeout_s=timeout_s)
        environment["XDG_RUNTIME_DIR"] = f"/run/user/{self.uid}"
        return command.run([program, "--user", *words], env=environment, timeout_s=timeout_s)

    def facts(self) -> Facts:
        """How the unit stands. Errors: CommandError when no systemd answers."""
        asked = f"--property={','.join(_PROPERTIES)}"
        return parse_facts(self.call("show", asked, "--", self.name).stdout)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """From `systemctl show`. exec_stop: the commands as text; exit_code: negative for the signal that ended it."""

    load: str
    load_error: str
    active: str
    sub: str
    file_state: str
    changed_on_disk: bool
    main_pid: int
    type: str
    kill_mode: str
    kill_signal: int
    exec_stop: tuple[str, ...]
    fragment: str
    manual: bool
    exit_code: int
    result: str
    busy: bool
    environment_files: tuple[Path, ...] = ()
    stop_timeout: str = ""

    @property
    def stops_by_itself(self) -> bool:
        """Whether it has commands of its own for a stop, which may well send the signal that systemd sends after."""
        return bool(self.exec_stop) and not self.only_kills

    @property
    def only_kills(self) -> bool:
        """Whether its ExecStop= would make systemd's SIGTERM the second one."""
        return bool(self.exec_stop) and all(map(_PLAIN_KILL.match, self.exec_stop))


def parse_facts(text: str) -> Facts:
    """Read `systemctl show` (one Name=value a line; ExecStop once for each command)."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields.setdefault(name, []).append(value)

    def one(name: str) -> str:
        return fields.get(name, [""])[-1]

    def number(name: str) -> int:
        return int(one(name)) if one(name).isdigit() else 0

    status = number("ExecMainStatus")
    return Facts(
        load=one("LoadState"), load_error=one("LoadError"), active=one("ActiveState"), sub=one("SubState"),
        file_state=one("UnitFileState"), changed_on_disk=one("NeedDaemonReload") == "yes", main_pid=number("MainPID"),
        type=one("Type"), kill_mode=one("KillMode"), kill_signal=number("KillSignal"),
        exec_stop=tuple(match["argv"] for value in fields.get("ExecStop", ()) if (match := _ARGV.search(value))),
        fragment=one("FragmentPath"), manual="yes" not in {one("RefuseManualStart"), one("RefuseManualStop")},
        exit_code=-status if number("ExecMainCode") in _KILLED else status, result=one("Result"),
        busy=one("Job") not in {"", "0"},
        environment_files=tuple(
            Path(value.rpartition(" (")[0]) for value in fields.get("EnvironmentFiles", ()) if value.startswith("/")
        ),
        stop_timeout=one("TimeoutStopUSec"),
    )
