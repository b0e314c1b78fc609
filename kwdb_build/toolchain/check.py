"""Whether a system has what a tree asks for: the build image always, this host for what runs on it or compiles there.

Pure: facts come from probe.py, requirements from requirements.py. A row that cannot be read or found out is unknown,
never ok.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.catalog import fixes, key_of, known_of
from kwdb_build.toolchain.requirements import Phase, Requirement, Requirements, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class _Result(Protocol):
        def __call__(self, verdict: Verdict, found: str, *, fix: bool = False) -> CheckResult: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is looked at.

    group: 'image' or 'host'. toolchain: whose image it is ('' for a host). loads: the shared libraries that the built
    binaries name, None before there are any.
    """

    group: str = "image"
    toolchain: str = ""
    loads: tuple[str, ...] | None = None


_IMAGE = Subject()


def check(
    requirements: Requirements, facts: Mapping[str, str], subject: Subject = _IMAGE
) -> tuple[CheckResult, ...]:
    """One verdict a row."""
    return tuple(replace(_verdict(row, facts, subject), group=subject.group) for row in requirements.rows)


def _verdict(row: Requirement, facts: Mapping[str, str], subject: Subject) -> CheckResult:
    name = row.name if row.phase is Phase.COMPILE else f"{row.name} (running)"

    def result(verdict: Verdict, found: str, *, fix: bool = False) -> CheckResult:
        ways = _ways(row, facts) if fix else ()
        return CheckResult(
            name=name, verdict=verdict, required=row.wanted if row.readable else "?", found=found, where=row.where,
            fix=_first_way(row, ways, subject) if fix else "", fixes=ways, note=row.differs,
        )

    if not row.readable:
        return result(Verdict.UNKNOWN, row.note)
    if not facts:
        return result(Verdict.UNKNOWN, "this system could not be asked")
    if row.phase is Phase.RUN and not row.waived and (unused := _not_loaded(row, subject)):
        return result(Verdict.SKIP, unused)
    found = _look(row, facts)
    if found is None:
        return _absent(row, facts, result, subject)
    text, version = found
    if not version and (row.minimum or row.maximum):
        if row.waived:
            return result(Verdict.SKIP, f"{text}; not needed: {row.waived}")
        return result(Verdict.UNKNOWN, f"present, but its version cannot be read: {text[:60]}")
    if row.minimum and numbers(version) < numbers(row.minimum):
        return _too_old(row, text, version, result)
    if row.maximum and numbers(version) > numbers(row.maximum):
        return result(Verdict.WARN, f"{text}; newer than the tree was tried with")
    return result(Verdict.OK, text)


def _not_loaded(row: Requirement, subject: Subject) -> str:
    """Why a running dependency does not count for binaries that are there already; '' when it does."""
    known = known_of(row.name, running=True)
    if subject.loads is None or known is None or not known.sonames:
        return ""
    loaded = any(library.startswith(known.sonames) for library in subject.loads)
    return "" if loaded else "the built kwbase does not load it"


def _too_old(row: Requirement, text: str, version: str, result: _Result) -> CheckResult:
    if row.waived:
        return result(Verdict.SKIP, f"{text}; not needed: {row.waived}")
    if row.floor and numbers(version) >= numbers(row.floor):
        return result(Verdict.WARN, f"{text}; the tree's own build files accept {row.floor} or newer", fix=True)
    return result(Verdict.WARN if row.phase is Phase.RUN else Verdict.FAIL, text, fix=True)


def _absent(row: Requirement, facts: Mapping[str, str], result: _Result, subject: Subject) -> CheckResult:
    if row.waived:
        return result(Verdict.SKIP, f"not there; not needed: {row.waived}")
    if row.phase is Phase.RUN and subject.group == "image":
        return result(Verdict.SKIP, "not in the build image; counts where the server runs")
    if known_of(row.name, running=row.phase is Phase.RUN) is None:
        return result(Verdict.UNKNOWN, "no program or package of that name; not known how else to look for it")
    if row.phase is Phase.RUN:
        return result(Verdict.WARN, "not found; the libraries of the build decide whether it counts", fix=True)
    if row.advisory:
        return result(Verdict.WARN, "not found", fix=True)
    if key_of(row.name) == "build-essential" and all(f"tool:{tool}" in facts for tool in ("gcc", "g++", "make")):
        return result(Verdict.OK, "gcc, g++ and make")
    return result(Verdict.FAIL, "not found", fix=True)


def _look(row: Requirement, facts: Mapping[str, str]) -> tuple[str, str] | None:
    """(text for people, version number or '') of what is there; None when nothing is."""
    key = key_of(row.name)
    known = known_of(row.name, running=row.phase is Phase.RUN)
    tools = known.tools if known else (key,)
    packages = known.packages if known else (key, f"{key}-dev", f"{key}-devel")
    for tool in tools:
        if (answer := facts.get(f"tool:{tool}")) is not None:
            version = tool_version(answer)
            return f"{tool} {version}".strip() if version else answer.splitlines()[0] if answer else tool, version
    for package in packages:
        if (text := facts.get(f"package:{package}")) is not None:
            return f"{package} {text}", package_version(text)
    for file in known.files if known else ():
        if path := facts.get(f"file:{file}"):
            # What the compiler brings has the compiler's version.
            return path, tool_version(facts.get("tool:gcc", ""))
    return None


_PARENTHESES = re.compile(r"\([^()]*\)")
_NUMBER = re.compile(r"(?:^|[\s v]|go)(\d+(?:\.\d+)+|\d+)(?=$|[\s,.\-+~a-z])")


def tool_version(answer: str) -> str:
    """Version number in a program's own words: `gcc (Debian 12.2.0-14) 12.2.0`, `go version go1.22.10 linux/amd64`."""
    for line in answer.splitlines():
        if match := _NUMBER.search(_PARENTHESES.sub("", line)):
            return match[1]
    return ""


def package_version(text: str) -> str:
    """Upstream number of a package version: `1:2.39.5-0+deb12u2` -> 2.39.5, `6.2+20201114-2` -> 6.2."""
    upstream = text.partition(":")[2] or text
    match = re.match(r"\d+(?:\.\d+)*", upstream)
    return match[0] if match else ""


def _ways(row: Requirement, facts: Mapping[str, str]) -> tuple[str, ...]:
    known = known_of(row.name, running=row.phase is Phase.RUN)
    return fixes(known, facts.get("manager", "apt-get")) if known else ()


def _first_way(row: Requirement, ways: tuple[str, ...], subject: Subject) -> str:
    known = known_of(row.name, running=row.phase is Phase.RUN)
    if subject.group == "image" and subject.toolchain and known and known.apt:
        return (
            f"add {known.package('apt-get')} to packages in toolchain.toml of {subject.toolchain}, then "
            f"`kwdb-build toolchain lock {subject.toolchain}`"
        )
    return ways[0] if ways else row.note
