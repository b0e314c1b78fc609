"""A container image of a stored build, laid out as KWDB's published one, made without an engine and without a registry.

/kaiwudb/bin, /kaiwudb/lib   the build; working directory /kaiwudb/bin, LD_LIBRARY_PATH=/kaiwudb/lib, ports 26257, 8080
/kaiwudb/deploy              a volume: data never lies in the container's writable layer
/kaiwudb/certs               where certificates are mounted
No entrypoint, as there: the command is `./kwbase start-single-node …`, which so is process 1 and gets SIGTERM itself.
The default command asks for certificates; whoever wants --insecure says so, as KWDB's guide does.

Below it lie only the packages of the toolchain's lock that the build needs to run, and a shell. Same build, same lock:
same bytes. The archive can be read by `docker load`, `podman load` and everything that takes an OCI layout.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from kwdb_build import __version__
from kwdb_build.build import debian
from kwdb_build.build.host import glibc_floor
from kwdb_build.build.inspection import architecture_of
from kwdb_build.build.store import PROVENANCE, SBOM
from kwdb_build.errors import UsageError
from kwdb_build.scratch import scratch_directory
from kwdb_build.toolchain import base_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.model import Artifact, Toolchain

ROOT = PurePosixPath("/kaiwudb")
STORE = ROOT / "deploy/kwdb-container"
PORTS = ("26257/tcp", "8080/tcp")
COMMAND = (
    "./kwbase", "start-single-node", f"--certs-dir={ROOT / 'certs'}", "--listen-addr=0.0.0.0:26257",
    "--http-addr=0.0.0.0:8080", f"--store={STORE}",
)
BEGINS = b"oci-layout"
"""How the archive begins: with the name of its first member."""
_BASE_PACKAGES = ("base-files", "bash", "coreutils", "dash", "grep", "libc-bin", "sed")
"""Besides the libraries: KWDB's scripts and the usual `bash -c "…"` of compose files."""
_LEFT_OUT = re.compile(
    r"^usr/share/(?:man|info|locale|lintian|doc-base|bash-completion|bug|doc(?!/[^/]+/copyright$))/."
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_REFERENCE = re.compile(
    r"^[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::\d+(?=/))?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?$"
)
_USER = re.compile(r"^(?P<uid>\d{1,9})(?::(?P<gid>\d{1,9}))?$")
_SCRATCH = "image-"
_SECOND_NS = 1_000_000_000
HEALTH = "usr/local/bin/kwdb-health"
_HEALTH_SCRIPT = """\
#!/bin/bash
# Whether the server of this container answers /health?ready=1; its address is taken from its own command line.
host=127.0.0.1 port=8080
command=$(tr '\\0' ' ' < /proc/1/cmdline)
if [[ $command =~ --http-addr[=\\ ]([^\\ :]*):([0-9]+) ]]; then
    port=${BASH_REMATCH[2]}
    case ${BASH_REMATCH[1]} in "" | 0.0.0.0 | localhost) ;; *) host=${BASH_REMATCH[1]} ;; esac
fi
exec 3<> "/dev/tcp/$host/$port" || exit 1
printf 'GET /health?ready=1 HTTP/1.0\\r\\nHost: %s\\r\\n\\r\\n' "$host" >&3
IFS= read -r -t 4 line <&3
[[ $line == *" 200 "* ]]
"""


@dataclass(frozen=True, kw_only=True)
class User:
    """Who the server runs as in a container; 0 as in the published image, whose volumes belong to root."""

    uid: int = 0
    gid: int = 0

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, kw_only=True)
class MadeImage:
    """An image archive: its tag, its identity (as engines say it), its layers, and the packages in it."""

    tag: str
    image_id: str
    layers: tuple[str, ...]
    packages: tuple[str, ...]
    size_bytes: int


def parse_tag(text: str) -> str:
    """`name:tag` or `host:port/name` (then :latest) -> with its tag; UsageError for what no engine would take."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise UsageError(f"not an image name: {text!r}", hint="lower case, such as kwdb/kwdb:3.2.1")
    return text if match["tag"] else f"{text}:latest"


def parse_user(text: str) -> User:
    """`1000` or `1000:1000`; UsageError otherwise."""
    match = _USER.fullmatch(text)
    if match is None:
        raise UsageError(f"not a user: {text!r}", hint="numbers, such as 1000 or 1000:1000")
    return User(uid=int(match["uid"]), gid=int(match["gid"] or match["uid"]))


def make_image(
    store: ArtifactStore, artifact: Artifact, toolchain: Toolchain, target: IO[bytes], *, place: Path, tag: str,
    user: User, settings: Settings, progress: Progress, log: Path,
) -> MadeImage:
    """Write the image of a stored build as one archive to an open file; place has room for its layers meanwhile.

    Errors: ArtifactError (changed), DependencyError (a package cannot be had, or none holds a library), UsageError
    (the toolchain is for another architecture), OSError.
    """
    if toolchain.architecture != architecture_of(artifact):
        raise UsageError(
            f"the build is for {architecture_of(artifact) or 'an unknown machine'}, toolchain {toolchain.name} for "
            f"{toolchain.architecture}", hint="name the build's own toolchain with --toolchain",
        )
    progress.update("verifying the stored build")
    store.hold(artifact)
    archives = base_image.fetch_packages(toolchain, settings=settings, progress=progress, log=log)
    progress.update("choosing the packages it needs to run")
    chosen = choose_packages(artifact, archives)
    with scratch_directory(place, _SCRATCH) as scratch:
        progress.update("writing the system's layer")
        system = _write_layer(scratch / "system", lambda tar: _system(tar, chosen, user))
        progress.update("writing KWDB's layer")
        server = _write_layer(scratch / "server", lambda tar: _server(tar, artifact, user))
        details = store.details(artifact)
        config = json.dumps(
            _config(artifact, toolchain, details, user, layers=(system, server)), sort_keys=True
        ).encode()
        made = MadeImage(
            tag=tag, image_id=f"sha256:{hashlib.sha256(config).hexdigest()}", layers=(system.digest, server.digest),
            packages=tuple(f"{one.name}={one.fields['Version']}" for one in chosen),
            size_bytes=system.size + server.size,
        )
        _write_archive(target, made, config, (system, server))
    return made


def choose_packages(artifact: Artifact, archives: Sequence[Path]) -> list[debian.Package]:
    """The packages of a lock that hold the libraries the build names, a shell, and what those depend on."""
    packages = {package.name: package for package in map(debian.read_package, archives)}
    libraries = [name for name in glibc_floor(artifact).libraries if not name.startswith("ld-linux")]
    held = debian.holders(list(packages.values()), libraries)
    wanted = {*held.values(), *(name for name in _BASE_PACKAGES if name in packages)}
    return [packages[name] for name in debian.closure(packages, wanted)]


# Layers ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """An uncompressed layer on disk; digest is `sha256:…`, also its diff id."""

    path: Path
    digest: str
    size: int


def _write_layer(path: Path, fill: Callable[[tarfile.TarFile], None]) -> _Layer:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        fill(tar)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return _Layer(path=path, digest=f"sha256:{digest}", size=path.stat().st_size)


def _system(tar: tarfile.TarFile, packages: Sequence[debian.Package], user: User) -> None:
    """The packages' files as dpkg would lay them out on a merged /usr, without running their scripts."""
    seen: set[str] = set()
    for name in _MERGED:
        _directory(tar, seen, f"usr/{name}")
        _link(tar, seen, name, f"usr/{name}")
    for package in packages:
        with debian.contents(package.path) as files:
            for member in files:
                _unpack(tar, seen, files, member)
        stanza = "".join(f"{name}: {value}\n" for name, value in package.fields.items())
        _file(tar, seen, f"var/lib/dpkg/status.d/{package.name}", f"{stanza}Status: install ok installed\n".encode())
    if "usr/bin/sh" not in seen:
        _link(tar, seen, "usr/bin/sh", "dash" if "usr/bin/dash" in seen else "bash")
    _directory(tar, seen, "tmp", mode=0o1777)
    named = f"kwdb:x:{user.uid}:{user.gid}:kwdb:{ROOT}:/bin/bash\n" if user.uid else ""
    _file(tar, seen, "etc/passwd", f"root:x:0:0:root:/root:/bin/bash\n{named}".encode())
    _file(tar, seen, "etc/group", ("root:x:0:\n" + (f"kwdb:x:{user.gid}:\n" if user.gid else "")).encode())
    _file(tar, seen, "etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")


def _unpack(tar: tarfile.TarFile, seen: set[str], files: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    name = _merged(member.name)
    if not name or name in seen or _LEFT_OUT.match(name) or member.ischr() or member.isblk():
        return
    _parents(tar, seen, name)
    seen.add(name)
    info = _info(name, mode=member.mode, uid=member.uid, gid=member.gid)
    info.type = member.type
    if member.islnk():
        info.linkname = _merged(member.linkname)
    elif member.issym():
        info.linkname = member.linkname
    stream = files.extractfile(member) if member.isreg() else None
    info.size = member.size if stream else 0
    tar.addfile(info, stream)


def _merged(name: str) -> str:
    """A path of a package on a system whose /bin, /sbin and /lib are links into /usr."""
    path = name.removeprefix("./").strip("/")
    return f"usr/{path}" if path.split("/")[0] in _MERGED else path


def _server(tar: tarfile.TarFile, artifact: Artifact, user: User) -> None:
    seen: set[str] = set()
    root = str(ROOT).lstrip("/")
    _directory(tar, seen, f"{root}/bin")
    _directory(tar, seen, f"{root}/lib")
    _directory(tar, seen, f"{root}/certs")
    for place in (f"{root}/deploy", str(STORE).lstrip("/")):
        _directory(tar, seen, place, mode=0o750, uid=user.uid, gid=user.gid)
    for entry in artifact.files:
        if entry.link:
            _link(tar, seen, f"{root}/{entry.path}", entry.link)
            continue
        with (artifact.path / entry.path).open("rb") as stream:
            _parents(tar, seen, f"{root}/{entry.path}")
            info = _info(f"{root}/{entry.path}", mode=0o755 if entry.mode & 0o111 else 0o644)
            info.size = entry.size
            tar.addfile(info, stream)
    for name in (PROVENANCE, SBOM):
        if (artifact.path / name).is_file():
            _file(tar, seen, f"usr/share/kwdb-build/{name}", (artifact.path / name).read_bytes())
    _file(tar, seen, HEALTH, _HEALTH_SCRIPT.encode(), mode=0o755)


def _info(name: str, *, mode: int, uid: int = 0, gid: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid, info.mtime = mode, uid, gid, base_image.EPOCH
    return info


def _parents(tar: tarfile.TarFile, seen: set[str], name: str) -> None:
    for parent in reversed(PurePosixPath(name).parents[:-1]):
        _directory(tar, seen, str(parent))


def _directory(
    tar: tarfile.TarFile, seen: set[str], name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0
) -> None:
    if name not in seen:
        _parents(tar, seen, name)
        seen.add(name)
        info = _info(name, mode=mode, uid=uid, gid=gid)
        info.type = tarfile.DIRTYPE
        tar.addfile(info)


def _link(tar: tarfile.TarFile, seen: set[str], name: str, target: str) -> None:
    _parents(tar, seen, name)
    seen.add(name)
    info = _info(name, mode=0o777)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def _file(tar: tarfile.TarFile, seen: set[str], name: str, content: bytes, *, mode: int = 0o644) -> None:
    _parents(tar, seen, name)
    seen.add(name)
    info = _info(name, mode=mode)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


# The archive ----------------------------------------------------------------------------------------------------------


def _config(
    artifact: Artifact, toolchain: Toolchain, details: dict[str, Any], user: User, *, layers: Sequence[_Layer]
) -> dict[str, Any]:
    """The image's configuration; pure."""
    moment = int(details.get("source_time", base_image.EPOCH))
    created = datetime.fromtimestamp(moment, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    source = details.get("source")
    labels = {
        "org.opencontainers.image.title": "KWDB",
        "org.opencontainers.image.version": artifact.version.text,
        "org.opencontainers.image.revision": artifact.commit,
        "org.opencontainers.image.source": str(source.get("url", "")) if isinstance(source, dict) else "",
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.licenses": "MulanPSL-2.0",
        "kwdb-build.key": artifact.key.digest,
        "kwdb-build.toolchain": f"{toolchain.name}@{toolchain.lock_digest}",
    }
    return {
        "architecture": toolchain.architecture, "os": "linux", "created": created,
        "config": {
            "User": str(user) if user.uid else "",
            "Env": ["PATH=/kaiwudb/bin:/usr/local/bin:/usr/bin:/bin", f"LD_LIBRARY_PATH={ROOT / 'lib'}",
                    "LC_ALL=C.UTF-8"],
            "Cmd": list(COMMAND), "WorkingDir": str(ROOT / "bin"), "StopSignal": "SIGTERM",
            "ExposedPorts": {port: {} for port in PORTS}, "Volumes": {str(ROOT / "deploy"): {}},
            "Labels": {name: value for name, value in labels.items() if value},
            "Healthcheck": {"Test": ["CMD", f"/{HEALTH}"], "Interval": 10 * _SECOND_NS, "Timeout": 5 * _SECOND_NS,
                            "StartPeriod": 60 * _SECOND_NS, "Retries": 3},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [
            {"created": created, "created_by": f"kwdb-build {__version__}: {words}"}
            for words in ("runtime packages", f"KWDB {artifact.version}")
        ],
    }


def _write_archive(stream: IO[bytes], made: MadeImage, config: bytes, layers: Sequence[_Layer]) -> None:
    """One tar that is both what `docker save` writes and an OCI layout."""
    blob = "blobs/sha256/{}".format
    name, _, version = made.tag.rpartition(":")
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", made.image_id, len(config)),
            "layers": [
                _descriptor("application/vnd.oci.image.layer.v1.tar", layer.digest, layer.size) for layer in layers
            ],
        },
        sort_keys=True,
    ).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    index = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            _descriptor("application/vnd.oci.image.manifest.v1+json", f"sha256:{digest}", len(manifest))
            | {"annotations": {"org.opencontainers.image.ref.name": version, "io.containerd.image.name": made.tag}}
        ],
    }
    docker = [{
        "Config": blob(made.image_id.removeprefix("sha256:")), "RepoTags": [f"{name}:{version}"],
        "Layers": [blob(layer.digest.removeprefix("sha256:")) for layer in layers],
    }]
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        seen: set[str] = set()
        _file(tar, seen, BEGINS.decode(), b'{"imageLayoutVersion": "1.0.0"}')
        _file(tar, seen, "index.json", json.dumps(index, sort_keys=True).encode())
        _file(tar, seen, "manifest.json", json.dumps(docker, sort_keys=True).encode())
        _file(tar, seen, blob(digest), manifest)
        _file(tar, seen, blob(made.image_id.removeprefix("sha256:")), config)
        for layer in layers:
            with layer.path.open("rb") as content:
                info = _info(blob(layer.digest.removeprefix("sha256:")), mode=0o644)
                info.size = layer.size
                tar.addfile(info, content)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}
