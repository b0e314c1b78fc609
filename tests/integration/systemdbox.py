"""A container with a real systemd as its first process, and servers of the miniature in it that are units.

The tool runs inside of it: this Python, its packages and this checkout are mounted, the builds come with a home.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.tool import TOOLCHAIN, Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.engine.docker import DockerEngine
    from tests.minikwdb.repositories import MiniRepositories

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
PACKAGES = ("systemd", "systemd-sysv", "libpam-systemd", "dbus", "procps", "git", "libssl3", "libffi8", "libsqlite3-0", "libbz2-1.0")
LEFT_OUT = ("doc", "man", "locale", "info")
PER_START = frozenset({"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID"})
PORTS = itertools.count(26000, 2)


def packages() -> tuple[str, ...]:
    """What the image holds; Debian's own Python only when that is what runs these tests."""
    return (*PACKAGES, "python3") if sys.base_prefix == "/usr" else PACKAGES


def suite() -> str:
    """Code name of this machine's release: its programs must run in the container."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def image_tag() -> str:
    """Named by what is in it."""
    return f"kwdb-build-test/systemd:{hashlib.sha256(repr((suite(), packages())).encode()).hexdigest()[:16]}"


def make_image(engine: DockerEngine, directory: Path) -> str:
    """Bootstrap the image unless it is there."""
    tag = image_tag()
    if engine.image_id(tag) is None:
        archive = directory / "systemd.tar"
        options = ["--variant=minbase", "--mode=root", "--dpkgopt=force-unsafe-io", f"--include={','.join(packages())}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
        subprocess.run(["mmdebstrap", "--quiet", *options, suite(), str(archive)], check=True)
        engine.import_base(archive, tag, environment={})
        archive.unlink()
    return tag


@dataclass(kw_only=True)
class Machine:
    """A running container. home: of the tool, in the container too; place: a directory both sides see."""

    engine: DockerEngine
    container: str
    place: Path
    repositories: MiniRepositories

    @property
    def home(self) -> Path:
        """Where the tool keeps its runs."""
        return self.place / "home"

    def run(self, *argv: str, environment: dict[str, str] | None = None, user: str = "root") -> Answer:
        """Run a program in the container to its end."""
        api = self.engine._api
        made = api.exec_create(
            self.container, list(argv), workdir=str(ROOT), user=user,
            environment={"PATH": os.defpath + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", **(environment or {})},
        )
        out, err = api.exec_start(made["Id"], demux=True)
        code = api.exec_inspect(made["Id"])["ExitCode"]
        return Answer(code=code, out=(out or b"").decode(errors="replace"), err=(err or b"").decode(errors="replace"))

    def ok(self, *argv: str) -> str:
        """Run a program that must not fail; what it said."""
        answer = self.run(*argv)
        assert answer.code == 0, f"{argv}: {answer.out}{answer.err}"
        return answer.out

    def shell(self, script: str) -> str:
        """Several commands of a test's set-up."""
        return self.ok("sh", "-euc", script)

    def tool(self, verb: str, *words: str, **environment: str) -> Answer:
        """The command line inside the container."""
        prefix, replacement = self.repositories.redirect
        options = ["--home", str(self.home)]
        if verb in {"upgrade", "plan"}:
            options += ["--url", str(self.repositories.main), "--redirect", f"{prefix}={replacement}"]
            options += ["--toolchain", str(TOOLCHAIN)]
        settings = {"KWDB_BUILD_SETTLE_S": "1", **environment}
        return self.run(sys.executable, "-m", "kwdb_build", verb, *options, *words, environment=settings)

    def journal(self) -> list[dict[str, Any]]:
        """Journal of the newest run."""
        newest = max((self.home / "runs").iterdir())
        return [json.loads(line) for line in (newest / "journal.jsonl").read_text(encoding="utf-8").splitlines()]

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.ok("systemctl", "show", "--value", f"--property={name}", "--", unit).strip()


@contextlib.contextmanager
def machine(engine: DockerEngine, tag: str, place: Path, repositories: MiniRepositories) -> Iterator[Machine]:
    """Boot a container, and remove it afterwards."""
    api = engine._api
    mounts = {str(path) for path in (ROOT, Path(sys.prefix), repositories.root)}
    if sys.base_prefix != "/usr":
        mounts.add(sys.base_prefix)
    # A binding below another one (a venv in the checkout) comes with it.
    outer = {path for path in mounts if not any(path != other and Path(path).is_relative_to(other) for other in mounts)}
    binds = ["/sys/fs/cgroup:/sys/fs/cgroup:rw", f"{place}:{place}:rw", *(f"{path}:{path}:ro" for path in outer)]
    config = api.create_host_config(
        cap_add=["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE"], security_opt=["seccomp=unconfined"], cgroupns="host", binds=binds,
        tmpfs={"/run": "exec", "/run/lock": ""},
    )
    made = api.create_container(
        tag, command=["/sbin/init"], name=f"test-systemd-{uuid.uuid4().hex[:12]}", host_config=config,
        environment={"container": "docker"},
    )["Id"]
    try:
        api.start(made)
        found = Machine(engine=engine, container=made, place=place, repositories=repositories)
        await_boot(found)
        yield found
    finally:
        api.remove_container(made, force=True, v=True)


def await_boot(booting: Machine) -> None:
    """Until systemd has started all there is."""
    deadline = time.monotonic() + PATIENCE_S
    while booting.run("systemctl", "is-system-running").out.strip() not in {"running", "degraded"}:
        if time.monotonic() > deadline:
            raise TimeoutError(booting.run("systemctl", "status", "--no-pager").out)
        time.sleep(0.1)


@dataclass(kw_only=True)
class UnitServer:
    """A server of the miniature below /srv in the container that is run by a unit.

    directory: its place there, by default its name. words: further arguments. certs: on the machine of the tests.
    """

    machine: Machine
    name: str
    directory: str = ""
    user: str = "root"
    words: tuple[str, ...] = ()
    certs: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    service: dict[str, str] = field(default_factory=dict)
    background: bool = False
    port: int = field(default_factory=lambda: next(PORTS))

    @property
    def unit(self) -> str:
        """Its unit."""
        return f"{self.name}.service"

    @property
    def root(self) -> Path:
        """Where it is installed."""
        return Path("/srv") / (self.directory or self.name)

    @property
    def unit_file(self) -> Path:
        """Its text."""
        return Path("/etc/systemd/system") / self.unit

    @property
    def start(self) -> str:
        """Its arguments, quoted as systemd splits them."""
        words = ["start-single-node", f"--certs-dir={self.root}/certs" if self.certs else "--insecure",
                 f"--listen-addr=127.0.0.1:{self.port}", f"--http-addr=127.0.0.1:{self.port + 1}",
                 f"--store={self.root / 'store'}", *self.words]
        return shlex.join([*words, "--background"] if self.background else words)

    def text(self) -> str:
        """The unit as KWDB's installer writes it, with what a test changes."""
        root = str(self.root).replace("%", "%%")
        lines = {
            "Type": "simple", "User": self.user, "LimitMEMLOCK": "infinity", "LimitNOFILE": "100000",
            "WorkingDirectory": f"{root}/bin", "EnvironmentFile": f"{root}/env",
            "ExecStart": f'"{root}/bin/kwbase" $KAIWUDB_START_ARG', "ExecStop": "/bin/kill $MAINPID", **self.service,
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items() if value)
        return f"[Unit]\nDescription=KaiwuDB {self.name}\n[Service]\n{text}[Install]\nWantedBy=multi-user.target\n"

    def install(self, build: Path) -> None:
        """Files, unit and environment; not started."""
        variables = {"KAIWUDB_START_ARG": f'"{self.start}"', "LD_LIBRARY_PATH": "../lib", "KW_VGROUP_NUM": "2"}
        variables |= self.environment
        staged = self.machine.place / f"{self.name}.staged"
        staged.mkdir()
        shutil.copytree(build / "bin", staged / "bin")
        shutil.copytree(build / "lib", staged / "lib")
        if self.certs:
            shutil.copytree(self.certs, staged / "certs")
        (staged / "env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        (staged / "unit").write_text(self.text())
        root = shlex.quote(str(self.root))
        self.machine.shell(
            f"mkdir -p {root}; cp {staged}/unit {self.unit_file}; rm {staged}/unit; cp -r {staged}/* {root}/; "
            f"chmod -R u+rwX,go+rX {root}; find {root} -name '*.key' -exec chmod 600 {{}} +; "
            f"chown -R {self.user}: {root}; systemctl daemon-reload"
        )
        for path in (staged, *staged.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(staged)

    def begin(self) -> None:
        """Start the unit and fill it."""
        self.machine.ok("systemctl", "start", "--", self.unit)
        self.ask("instance.write_rows()")

    def ask(self, what: str, **options: Any) -> str:
        """Call the client of the tests inside the container; what it prints. options: more of the instance's."""
        script = (
            "from pathlib import Path; from tests.minikwdb.instance import Instance; "
            f"instance = Instance(root=Path({str(self.root)!r}), sql_port={self.port}, http_port={self.port + 1}, "
            f"certs={'Path(' + repr(str(self.root / 'certs')) + ')' if self.certs else None}, **{options!r}); "
            f"print({what})"
        )
        return self.machine.ok(sys.executable, "-c", script).strip()

    def counts(self) -> str:
        """Rows of both kinds, as text."""
        return self.ask("instance.counts()")

    def version(self) -> str:
        """What runs."""
        return self.ask("instance.value('SELECT version()')").split()[1]

    def pid(self) -> int:
        """The unit's main process."""
        return int(self.machine.show(self.unit, "MainPID"))

    def surroundings(self, pid: int = 0) -> dict[str, Any]:
        """All of /proc that a restart must bring back, without what names one start of a unit."""
        script = (
            "import json, sys; from tests.integration.test_server_matrix import everything; "
            "print(json.dumps(everything(int(sys.argv[1])), default=lambda one: sorted(map(str, one)) "
            "if isinstance(one, set) else str(one)))"
        )
        seen = dict(json.loads(self.machine.ok(sys.executable, "-c", script, str(pid or self.pid()))))
        seen["environment"] = {name: value for name, value in seen["environment"].items() if name not in PER_START}
        seen["order"] = [name for name in seen["order"] if name not in PER_START]
        seen["links"] = [target.partition(":[")[0] for target in seen["links"]]  # the journal's sockets have numbers
        for output in ("fd/1", "fd/2"):
            seen[output] = seen[output].partition(":[")[0].partition("/kwbase.")[0]  # its own log has its pid in its name
        return seen

    def restart(self, *words: str, **environment: str) -> Answer:
        """`kwdb-build restart` of it."""
        return self.machine.tool("restart", "--store", f"{self.root}/store", "-y", *words, **environment)

    def logged(self) -> str:
        """Its own log since ever, all files."""
        return self.machine.shell(f"find {shlex.quote(str(self.root))} -name 'kwbase.*.log' -exec cat {{}} +")

    def left_behind(self) -> list[str]:
        """Files of the tool's in the manager's and the unit's directories."""
        places = f"/run/systemd /run/user /etc/systemd {shlex.quote(str(self.root))}"
        listed = self.machine.shell(f"find {places} -name '*kwdb-build*'")
        return listed.split()

    def remove(self) -> None:
        """Stop whatever became of it, and forget the tool's runs on it."""
        self.machine.run("systemctl", "kill", "--signal=SIGKILL", "--", self.unit)
        self.machine.run("systemctl", "stop", "--", self.unit)
        drop_ins = f"/run/systemd/system/{self.unit}.d"
        self.machine.run("rm", "-rf", str(self.root), str(self.unit_file), drop_ins, str(self.machine.home / "runs"))
