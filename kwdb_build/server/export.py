"""A captured start command for people and for other programs: a script, a systemd unit, a JSON document.

Each names what it leaves out. Values that may be secret are shown only where the caller says so (a file of mode 0600).
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import UsageError
from kwdb_build.model import to_json
from kwdb_build.server import proc, scheduling, startflags
from kwdb_build.server.start import redirected_by_itself

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kwdb_build.model import Deployment, StartCommand
    from kwdb_build.server.certificates import Certificate
    from kwdb_build.server.usage import Flag

_CAPABILITY_NAMES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)
CAPABILITIES = tuple(_CAPABILITY_NAMES.split())
"""By number (linux/capability.h)."""
_POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle"}
_HARMLESS = re.compile(
    r"^(KW_\w+|KWBASE_\w+|KWDB_\w+|LD_LIBRARY_PATH|PATH|HOME|PWD|OLDPWD|USER|LOGNAME|SHELL|SHLVL|TERM|LANG|LANGUAGE"
    r"|LC_\w+|TZ|TMPDIR|GO\w+|MALLOC_\w+|_)$"
)
_SECRET = re.compile(r"PASS|SECRET|TOKEN|KEY|CRED|URL|AUTH", re.IGNORECASE)


def shown(start: StartCommand) -> dict[str, str]:
    """The environment for a screen: values are shown of variables that are known to hold no secret."""
    return {
        name: value if _HARMLESS.match(name) and not _SECRET.search(name) else startflags.REDACTED
        for name, value in start.environ.items()
    }


def shell_text(start: StartCommand, *, redact: bool) -> str:
    """A POSIX shell script that becomes the same process: `sh FILE`, as root or as the server's user.

    It needs setpriv, prlimit and setsid (util-linux), as every Linux has them.
    """
    user, environ = proc.user_name(start.uid), shown(start) if redact else start.environ
    argv = startflags.redact(start.argv) if redact else start.argv
    hidden = sum(value == startflags.REDACTED for value in environ.values())
    lines = [
        "#!/bin/sh",
        f"# kwbase as user {_comment(user)} (uid {start.uid}, gid {start.gid}), captured by kwdb-build",
        *(f"# not replayed: {_comment(name)} ({reason})" for name, reason in start.dropped.items()),
        *([f"# {hidden} values are not shown: `kwdb-build capture --as shell -o FILE` writes a script that can be run"]
          if redact and hidden else []),
        *(f"# {name} went to {_comment(target)}, which cannot be named here"
          for name, target in zip(("standard output", "errors"), _outputs(start), strict=True)
          if target and not _nameable(target)),
        "set -e",
        "me=$(id -u)",
        f'if [ "$me" != 0 ] && [ "$me" != {start.uid} ]; then',
        f"  echo 'run this as root or as uid {start.uid}' >&2",
        "  exit 1",
        "fi",
        f"cd {shlex.quote(str(start.cwd))}",
        f"umask {start.launcher_umask:04o}",
        f"echo {start.oom_score_adj} >/proc/self/oom_score_adj",
        f"renice -n {start.nice} -p $$ >/dev/null",
        "set -- env -i \\",
        *(f"  {shlex.quote(f'{name}={value}')} \\" for name, value in environ.items()),
        f"  {shlex.join(_program(start, argv))}",
        f'if [ "$me" = 0 ]; then set -- setpriv {" ".join(_setpriv(start))} "$@"; fi',
        f'exec {" ".join(["setsid", *_share(start), *_prlimit(start)])} "$@" {_redirections(start)}',
    ]
    return "\n".join(lines) + "\n"


def command_line(start: StartCommand) -> str:
    """The command in one line, without its surroundings."""
    return f"in {start.cwd}: {shlex.join(startflags.redact(start.argv))}"


def _comment(text: str) -> str:
    """A name of somebody else's making must not end the comment that it stands in."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _nameable(target: str) -> bool:
    terminal = target.startswith(("/dev/pts", "/dev/tty"))
    return target.startswith("/") and not target.endswith(proc.DELETED) and not terminal


def _outputs(start: StartCommand) -> tuple[str, str]:
    """Where standard output and errors go; '' for errors that kwbase sends to its own log by itself."""
    return start.stdout, "" if redirected_by_itself(start, start.stderr) else start.stderr


def _redirections(start: StartCommand) -> str:
    words = ["</dev/null"]
    for sign, target in zip((">>", "2>>"), _outputs(start), strict=True):
        if _nameable(target):
            words.append(f"{sign}{shlex.quote(target)}")
    return " ".join(words)


def _share(start: StartCommand) -> list[str]:
    words: list[str] = []
    policy, priority = start.scheduling
    if policy in _POLICIES and policy != 0:
        words += ["chrt", f"--{_POLICIES[policy]}", str(priority)]
    io_class, level = start.ionice
    if io_class:
        words += ["ionice", "-c", str(io_class), *(["-n", str(level)] if io_class in {1, 2} else [])]
    if _pinned(start):
        words += ["taskset", "-c", ",".join(map(str, start.affinity))]
    return words


def _pinned(start: StartCommand) -> bool:
    return bool(start.affinity) and set(start.affinity) != scheduling.all_processors()


def _prlimit(start: StartCommand) -> list[str]:
    def word(amount: int) -> str:
        return "unlimited" if amount == -1 else str(amount)

    limits = [f"--{name}={word(soft)}:{word(hard)}" for name, (soft, hard) in sorted(start.limits.items())]
    return ["prlimit", *limits] if limits else []


def _setpriv(start: StartCommand) -> list[str]:
    groups = f"--groups={','.join(map(str, start.groups))}" if start.groups else "--clear-groups"
    words = [f"--reuid={start.uid}", f"--regid={start.gid}", groups]
    if start.capabilities is not None:
        sets = start.capabilities
        for option, mask in (("inh-caps", sets.inheritable), ("ambient-caps", sets.ambient)):
            if mask:
                words.append(f"--{option}=-all,+" + ",+".join(_names(mask)))
        if lacking := _lacking(start):
            words.append("--bounding-set=-" + ",-".join(_names(lacking)))
    return [*words, *(["--no-new-privs"] if start.no_new_privileges else [])]


def _lacking(start: StartCommand) -> int:
    """Capabilities that this kernel has and the server could never get."""
    every = proc.read_status(1).capabilities
    return every.bounding & ~start.capabilities.bounding if every and start.capabilities else 0


def _names(mask: int) -> list[str]:
    return [CAPABILITIES[n] if n < len(CAPABILITIES) else f"cap_{n}" for n in range(64) if mask >> n & 1]


def _program(start: StartCommand, argv: Sequence[str]) -> tuple[str, ...]:
    """A bare argv[0] was found on a PATH that may not lead there any more: the file itself is certain."""
    return (str(start.executable), *argv[1:]) if "/" not in argv[0] else tuple(argv)


def unit_text(start: StartCommand, *, redact: bool) -> str:
    """A systemd service of the same command in the foreground. UsageError for what a unit file cannot hold.

    Type=notify, as kwbase reports READY=1; a drain is waited for without end, as a SIGKILL can lose rows.
    """
    if set(str(start.executable)) & set("\"'\\"):
        raise UsageError(
            f"systemd runs no program with a quote or a backslash in its path: {start.executable}",
            hint="use --as shell or --as json, or rename that directory",
        )
    environ = shown(start) if redact else start.environ
    argv = startflags.without_background(startflags.redact(start.argv) if redact else start.argv)
    unnamed = [name for name in environ if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None]
    lines = [
        "# Captured by kwdb-build from a running kwbase.",
        *(f"# Not replayed: {_comment(name)} ({reason})" for name, reason in start.dropped.items()),
        *(f"# Left out: {_comment(name)} (no name that systemd takes)" for name in unnamed),
        "[Unit]", f"Description=KWDB ({start.command})", "After=network-online.target", "Wants=network-online.target",
        "",
        "[Service]", "Type=notify", "NotifyAccess=main",
        f"User={proc.user_name(start.uid)}", f"Group={_group(start.gid)}",
        f"SupplementaryGroups={' '.join(_group(gid) for gid in start.groups)}" if start.groups else "",
        f"WorkingDirectory={_plain(str(start.cwd))}",
        f"ExecStart=@{_word(str(start.executable))} " + " ".join(_word(word, command=True) for word in argv),
        *(f"Environment={_word(f'{name}={value}')}" for name, value in environ.items() if name not in unnamed),
        "TimeoutStartSec=infinity", "TimeoutStopSec=infinity", "KillMode=mixed",
        f"UMask={start.launcher_umask:04o}", f"Nice={start.nice}", f"OOMScoreAdjust={start.oom_score_adj}",
        *_unit_share(start), *_unit_limits(start.limits), *_unit_rights(start),
        *(f"{name}={_unit_output(target)}"
          for name, target in zip(("StandardOutput", "StandardError"), _outputs(start), strict=True)),
        "",
        "[Install]", "WantedBy=multi-user.target",
    ]
    text = "\n".join(line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line or after.startswith("["))
    return text + "\n"


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _unit_share(start: StartCommand) -> list[str]:
    lines = []
    policy, priority = start.scheduling
    if policy in _POLICIES and policy != 0:
        lines.append(f"CPUSchedulingPolicy={_POLICIES[policy]}")
        lines += [f"CPUSchedulingPriority={priority}"] if priority else []
    io_class, level = start.ionice
    if io_class:
        lines.append(f"IOSchedulingClass={scheduling.IO_CLASSES[io_class]}")
        lines += [f"IOSchedulingPriority={level}"] if io_class in {1, 2} else []
    return lines + ([f"CPUAffinity={' '.join(map(str, start.affinity))}"] if _pinned(start) else [])


def _unit_limits(limits: Mapping[str, tuple[int, int]]) -> list[str]:
    def word(amount: int) -> str:
        return "infinity" if amount == -1 else str(amount)

    return [f"Limit{name.upper()}={word(soft)}:{word(hard)}" for name, (soft, hard) in sorted(limits.items())]


def _unit_rights(start: StartCommand) -> list[str]:
    if start.capabilities is None:
        return []
    lines = []
    if start.capabilities.ambient:
        lines.append("AmbientCapabilities=" + _unit_names(start.capabilities.ambient))
    if lacking := _lacking(start):
        lines.append("CapabilityBoundingSet=~" + _unit_names(lacking))
    return lines + (["NoNewPrivileges=yes"] if start.no_new_privileges else [])


def _unit_names(mask: int) -> str:
    return " ".join(f"CAP_{name.upper()}" for name in _names(mask) if not name.startswith("cap_"))


def _unit_output(target: str) -> str:
    if target == "/dev/null":
        return "null"
    return f"append:{_plain(target)}" if _nameable(target) and not target.startswith("/dev/") else "journal"


def _plain(text: str) -> str:
    """A value that systemd does not unquote: only its specifiers are special."""
    if not text.isprintable() or text != text.strip():
        raise UsageError(f"a unit file cannot name the path {text!r}", hint="use --as shell or --as json")
    return text.replace("%", "%%")


def _word(text: str, *, command: bool = False) -> str:
    """One quoted word; in a command line `$` is special as well."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a unit file cannot hold {text!r}: no valid UTF-8", hint="use --as shell or --as json"
        ) from error
    escaped = "".join(_ESCAPES.get(letter) or (letter if letter >= " " else f"\\x{ord(letter):02x}") for letter in text)
    escaped = escaped.replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if command else escaped}"'


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\x7f": "\\x7f"}


def document(
    deployment: Deployment, *, secrets: bool, known: Mapping[str, Flag], digests: Mapping[str, str],
    certificates: Sequence[Certificate],
) -> dict[str, Any]:
    """Everything, as JSON values: the deployment, its flags (given or default), digests and certificates."""
    start = deployment.start
    safe = dataclasses.replace(start, environ=shown(start), argv=startflags.redact(start.argv))
    shown_start = start if secrets else safe
    _, given = startflags.split(shown_start.argv)
    used = {name for name in known if name in given}
    return {
        "deployment": to_json(dataclasses.replace(deployment, start=shown_start)),
        "launcher_umask": f"{start.launcher_umask:04o}",
        "flags": {
            "given": {name: list(values) for name, values in given.items()},
            "default": {name: flag.default for name, flag in sorted(known.items()) if name not in used},
        },
        "effective": _effective(start),
        "sha256": dict(digests),
        "certificates": to_json(list(certificates)),
    }


def _effective(start: StartCommand) -> dict[str, Any]:
    """What kwbase makes of the flags together, whether given or not."""
    flags = startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ)
    return {
        "stores": [store.path for store in flags.stores], "ts_stores": [store.path for store in flags.ts_stores],
        "listen": str(flags.listen), "sql": str(flags.sql), "http": str(flags.http), "log_dir": flags.log_dir,
        "pid_file": flags.pid_file, "certs_dir": "" if flags.insecure else flags.certs_dir, "insecure": flags.insecure,
        "background": flags.background,
    }
