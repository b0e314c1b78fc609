"""Reads the command line of a kwbase server as kwbase itself does (pflag rules). Pure: no files, no processes.

Source of the facts: KWDB V2.2.2 to V3.2.1, kwbase/pkg/cli/{flags,start_unix}.go, base/store_spec.go, util/netutil.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_COMMANDS = frozenset({"start", "start-single-node", "start-single-replica"})
SERVER_PORT = 26257
HTTP_PORT = 8080
DEFAULT_STORE = "kwbase-data"
DEFAULT_CERTS_DIR = "${HOME}/.kwbase-certs"

_VALUELESS = frozenset({
    "background", "insecure", "unencrypted-localhost-http", "upgrade-complete", "external-io-disable-http",
    "external-io-disable-implicit-credentials", "experimental-dns-srv", "disable-cluster-name-verification",
    "use-raft-store", "no-color", "no-redirect-stderr", "logtostderr", "help", "version",
})
"""Flags whose value, if any, is joined by '=': the next argument never belongs to them."""
_SHORT = {"s": "store", "j": "join", "h": "help"}
_SHORT_VALUELESS = frozenset({"h"})
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_SECRET_FLAG = re.compile(r"password|secret|token", re.IGNORECASE)
REDACTED = "<redacted>"


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """One --store or --ts-store value; path is absolute, and empty for a store in memory."""

    path: str
    in_memory: bool = False
    attributes: tuple[str, ...] = ()
    size: str = ""


@dataclass(frozen=True, kw_only=True)
class HostPort:
    """What a listen flag says: an empty host is every address of the machine."""

    host: str
    port: int

    @property
    def wildcard(self) -> bool:
        """Whether it listens on all addresses."""
        return self.host in {"", "0.0.0.0", "::"}  # noqa: S104 compared, not bound

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class StartFlags:
    """A start command understood. log_dir is '' when logging to files is off, socket when there is no Unix socket."""

    command: str
    values: dict[str, tuple[str, ...]]
    stores: tuple[StoreSpec, ...]
    ts_stores: tuple[StoreSpec, ...]
    listen: HostPort
    sql: HostPort
    http: HostPort
    insecure: bool
    plain_http: bool
    certs_dir: str
    background: bool
    log_dir: str
    pid_file: str
    socket: str

    def last(self, name: str, default: str = "") -> str:
        """The value that counts when a flag is given several times."""
        return self.values[name][-1] if self.values.get(name) else default


def is_start_command(argv: Sequence[str]) -> bool:
    """Whether argv (argv[0] included) is a kwbase start command, by its words alone."""
    return split(argv)[0] in START_COMMANDS


def split(argv: Sequence[str]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Command word and flags: name -> values in order ('true' for a flag without one).

    pflag's rules: --x=y, --x y, -s y, -sy, -s=y, flags before or after the command, nothing after `--`.
    """
    words: list[str] = []
    values: dict[str, list[str]] = {}
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            _take(values, name, value if equals else None, rest, valueless=name in _VALUELESS)
        elif word.startswith("-") and len(word) > 1:
            letter, value = word[1], word[2:].removeprefix("=")
            _take(values, _SHORT.get(letter, letter), value or None, rest, valueless=letter in _SHORT_VALUELESS)
        else:
            words.append(word)
    return (words[0] if words else ""), {name: tuple(found) for name, found in values.items()}


def _take(values: dict[str, list[str]], name: str, value: str | None, rest: list[str], *, valueless: bool) -> None:
    if value is None:
        value = "true" if valueless or not rest else rest.pop(0)
    values.setdefault(name, []).append(value)


def parse(argv: Sequence[str], *, cwd: str, environ: Mapping[str, str]) -> StartFlags:
    """Everything the tool wants to know of a start command, defaults filled in.

    cwd and environ are the server's (relative paths, $HOME of the default certificate directory).
    Errors: UsageError when it is no start command, or a value cannot be one.
    """
    command, values = split(argv)
    if command not in START_COMMANDS:
        raise UsageError(
            f"not a kwbase start command: {' '.join(redact(argv)[:4])}",
            hint="expected one of " + ", ".join(sorted(START_COMMANDS)),
        )

    def last(*names: str) -> str:
        return next((values[name][-1] for name in names if values.get(name) and values[name][-1]), "")

    listen = _host_port(last("listen-addr"), SERVER_PORT, host=last("host"), port=last("port"))
    sql = _host_port(last("sql-addr"), listen.port)
    http = _host_port(last("http-addr"), HTTP_PORT, host=last("http-host"), port=last("http-port"))
    plain_http = _true(values, "unencrypted-localhost-http")
    stores = tuple(parse_store(value, cwd=cwd) for value in values.get("store", (DEFAULT_STORE,)))
    http_host = "localhost" if plain_http else http.host or listen.host
    on_disk = [store.path for store in stores if not store.in_memory]
    default_logs = posixpath.join(on_disk[0], "logs") if on_disk else ""
    return StartFlags(
        command=command,
        values=values,
        stores=stores,
        ts_stores=tuple(parse_store(value, cwd=cwd) for value in values.get("ts-store", ())),
        listen=listen,
        sql=HostPort(host=sql.host or listen.host, port=sql.port),
        http=HostPort(host=http_host, port=http.port),
        insecure=_true(values, "insecure"),
        plain_http=plain_http,
        certs_dir=_absolute(_expand(last("certs-dir") or DEFAULT_CERTS_DIR, environ), cwd),
        background=_true(values, "background"),
        log_dir=_absolute(values["log-dir"][-1], cwd) if "log-dir" in values else default_logs,
        pid_file=_absolute(last("pid-file"), cwd),
        socket=_absolute(_socket(values, environ, listen.port), cwd),
    )


def parse_store(value: str, *, cwd: str) -> StoreSpec:
    """`path=…,attrs=a:b,size=20%`, a bare path, or `type=mem,size=1GiB`. UsageError for what kwbase would refuse."""
    fields: dict[str, str] = {}
    for part in filter(None, value.split(",")):
        name, equals, content = part.partition("=")
        name, content = (name.lower(), content) if equals else ("path", name)
        if name in fields or not content or name not in {"path", "attrs", "size", "type", "rocksdb"}:
            raise UsageError(f"cannot read the store specification {value!r}", context=f"at {part!r}")
        fields[name] = content
    in_memory = fields.get("type") == "mem"
    path = fields.get("path", "")
    if bool(path) == in_memory or path.startswith("~"):
        raise UsageError(f"the store specification {value!r} names no usable path")
    return StoreSpec(
        path=_absolute(path, cwd), in_memory=in_memory, size=fields.get("size", ""),
        attributes=tuple(fields["attrs"].split(":")) if "attrs" in fields else (),
    )


def parse_host_port(text: str, default_port: int) -> HostPort:
    """`host:port`, `:port`, `host`, `[::1]:port`, `[::1]`; UsageError for anything else."""
    match = re.fullmatch(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:]*))?", text)
    port = (match["port"] or str(default_port)) if match else ""
    if match is None or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise UsageError(f"cannot read the address {text!r}", hint="host:port, :port or [IPv6]:port, the port a number")
    return HostPort(host=match["six"] or match["host"] or "", port=int(port))


def _host_port(text: str, default_port: int, *, host: str = "", port: str = "") -> HostPort:
    found = parse_host_port(text, default_port)
    # --host and --port are kwbase's old, hidden spellings of the same setting.
    return HostPort(host=found.host or host, port=parse_host_port(f":{port}", found.port).port if port else found.port)


def _socket(values: Mapping[str, tuple[str, ...]], environ: Mapping[str, str], port: int) -> str:
    """The Unix socket: --socket as it is, else one in --socket-dir; a flag counts before its variable."""
    given = {
        name: values[name][-1] if values.get(name) else environ.get(variable, "")
        for name, variable in (("socket", "KWBASE_SOCKET"), ("socket-dir", "KWBASE_SOCKET_DIR"))
    }
    return given["socket"] or (posixpath.join(given["socket-dir"], f".s.PGSQL.{port}") if given["socket-dir"] else "")


def _true(values: Mapping[str, tuple[str, ...]], name: str) -> bool:
    return name in values and values[name][-1] in _TRUE


def _absolute(path: str, cwd: str) -> str:
    return posixpath.normpath(posixpath.join(cwd, path)) if path else ""


def _expand(text: str, environ: Mapping[str, str]) -> str:
    """Go's os.ExpandEnv: ${NAME} and $NAME, an unset one is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda name: environ.get(name[1] or name[2], ""), text)


def edited(argv: Sequence[str], *, drop: Sequence[str] = (), add: Sequence[str] = ()) -> tuple[str, ...]:
    """Argv without the flags named in drop (all their spellings and values), with the words of add before any `--`.

    Errors: UsageError for a flag to drop that is not there, or a word to add that is no flag.
    """
    names = [name.lstrip("-") for name in drop]
    given = split(argv)[1]
    for name in names:
        if name not in given:
            raise UsageError(f"--drop-flag {name}: the server was not started with it", hint="see `kwdb-build capture`")
    for word in add:
        if not word.startswith("--") or word == "--":
            raise UsageError(f"--add-flag {word!r} is no flag", hint="write it as the server takes it: --name=value")
    kept: list[str] = list(argv[:1])
    rest = list(argv[1:])
    while rest and rest[0] != "--":
        word = rest.pop(0)
        name, joined = _name_of(word)
        valueless = name in _VALUELESS or (not word.startswith("--") and word[1:2] in _SHORT_VALUELESS)
        words = [word] if not name or joined or valueless or not rest else [word, rest.pop(0)]
        if name not in names:
            kept += words
    return (*kept, *add, *rest)


def _name_of(word: str) -> tuple[str, bool]:
    """Long name of the flag that a word is ('' for none), and whether its value is joined to it."""
    if word.startswith("--"):
        name, equals, _ = word[2:].partition("=")
        return name, bool(equals)
    if word.startswith("-") and len(word) > 1:
        return _SHORT.get(word[1], word[1]), len(word) > 2  # noqa: PLR2004
    return "", False


def with_background(argv: Sequence[str]) -> tuple[str, ...]:
    """Put --background back where the re-executed child has lost it: at the end, or before a `--`."""
    kept = [word for word in argv if word != "--background=false"]
    position = kept.index("--") if "--" in kept else len(kept)
    return (*kept[:position], "--background", *kept[position:])


def without_background(argv: Sequence[str]) -> tuple[str, ...]:
    """What kwbase's background parent hands to its child (start_unix.go)."""
    return tuple(word for word in argv if word != "--background" and not word.startswith("--background="))


def redact(argv: Sequence[str]) -> tuple[str, ...]:
    """Argv for people: values of flags that hold secrets are replaced."""
    shown: list[str] = []
    hide_next = False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = word.startswith("--") and _SECRET_FLAG.search(name) is not None
        if hide_next:
            shown.append(REDACTED)
        elif secret and equals:
            shown.append(f"{name}={REDACTED}")
        else:
            shown.append(word)
        hide_next = secret and not equals and not hide_next
    return tuple(shown)


def store_paths(flags: StartFlags) -> tuple[Path, ...]:
    """Directories of all stores on disk, --ts-store too."""
    return tuple(Path(store.path) for store in (*flags.stores, *flags.ts_stores) if store.path)


def base_name(argument: str) -> str:
    """Name of a program as argv[0] gives it ('-bash' of a login shell included)."""
    return os.path.basename(argument)  # noqa: PTH119 an argument, not always a path
