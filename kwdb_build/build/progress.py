"""What a build's own output says about how far it is. Pure: lines in, values out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from kwdb_build.build.recipe import INSTALL, SOURCE


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far the build is; done of total is 0 of 0 where it cannot be known.

    phase: 'configure', 'compile', 'link', 'native' (a build of another project inside), 'go' or 'install'.
    """

    phase: str
    text: str
    done: int = 0
    total: int = 0


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PERCENT = re.compile(r"^\[\s*(?P<done>\d+)%\]\s+(?P<what>.+)$")
_NINJA = re.compile(r"^\[(?P<done>\d+)/(?P<total>\d+)\]\s+(?P<what>.+)$")
_DIRECTORY = re.compile(r"^(?:\S*make)(?:\[\d+\])?: (?P<which>Entering|Leaving) directory .(?P<path>/.+?).$")
_OBJECT = re.compile(r"^(?:Building|Compiling)\s+\S+\s+object\s+(?P<path>\S+)")
_TARGET = re.compile(r"(?:^|/)CMakeFiles/(?P<target>[^/]+)\.dir/")
_EXTERNAL = re.compile(r"^(?:Creating directories for|No \w+ step for|Performing \w+ step for|Completed) '[^']+'")
"""What CMake's ExternalProject says of a build inside: these lines are the outer build's own."""
_GO_PACKAGE = re.compile(r"^(?:[\w.-]+\.[a-z]{2,}/[\w./~+-]+|_?/\S+/src/\S+)$")
_GO_STANDARD = re.compile(
    r"^(?:archive|bufio|bytes|cmd|compress|container|context|crypto|database|debug|embed|encoding|errors|expvar|flag|fmt"
    r"|go|hash|html|image|index|internal|io|log|math|mime|net|os|path|plugin|reflect|regexp|runtime|sort|strconv"
    r"|strings|sync|syscall|testing|text|time|unicode|unsafe|vendor)(?:/[\w./-]+)?$"
)
_SERVER = str(SOURCE / "kwbase")
"""Where the make of the Go server works."""
_PREFIX = f"{INSTALL}/"
_INSTALL_BEGINS = "========== install"
"""KWDB's root Makefile announces its targets so."""
_GO_COMMAND = re.compile(r"^(?:\S*/)?go (?P<verb>build|install|test) (?:.* )?(?P<what>\S+)$")
_GENERATED = re.compile(r"^(?:EXECGEN|regenerating) (?P<path>\S+)$")
_CHECKING = re.compile(r"^checking (?P<what>\S.*?)\.\.\.")
_INSTALLED = re.compile(
    r"^-- (?:Installing|Up-to-date|Set (?:non-toolchain portion of )?runtime path of):?\s*\"?(?P<path>[^\"]+)"
)
_CMAKE_END = re.compile(r"^-- (?P<what>Configuring done|Generating done|Build files have been written to)")
_COMPILER_CALL = re.compile(
    r"^(?:\S*/)?(?:cc|c\+\+|gcc|g\+\+|clang|clang\+\+)\s.*\s-c\s.*?(?P<path>[\w./+-]+\.(?:cc|cpp|cxx|c|S))(?:\s|$)"
)


class Tracker:
    """Follows one build line by line.

    A build of KWDB runs other builds inside, with percentages and install steps of their own: CMake's external projects
    (brpc, protobuf …, each in a directory that its make enters and leaves) and those that the make of the Go server
    starts (rocksdb, libroach …, which print no directory). Only the directory that printed a percentage first counts
    for done and total, only while no other one is open, and never backwards. It counts CMake's own objects; the Go
    server, with all that its make builds, is one of them. So a share is given while C++ is compiled, none while Go is,
    and none for the second pass over the finished targets that `make install` makes.
    """

    def __init__(self) -> None:
        self.phase = "configure"
        self.packages = 0
        self.inner = 0
        """Objects that builds inside have compiled (or that were compiled meanwhile)."""
        self._open: Counter[str] = Counter()
        self._directory = ""
        self._counted: str | None = None
        self._percent = 0

    def feed(self, line: str) -> Step | None:
        """The state after this line, None when it says nothing about progress."""
        text = _ANSI.sub("", line).strip()
        if match := _DIRECTORY.match(text):
            return self._moved(match["path"].rstrip("/"), entered=match["which"] == "Entering")
        if text.startswith(_INSTALL_BEGINS):
            self.phase = "install"
            return Step(phase=self.phase, text="installing")
        if match := _PERCENT.match(text):
            return self._compiled(int(match["done"]), 100, match["what"])
        if match := _NINJA.match(text):
            return self._compiled(int(match["done"]), int(match["total"]), match["what"])
        if match := _INSTALLED.match(text):
            return self._installed(match["path"])
        if _GO_PACKAGE.match(text) or _GO_STANDARD.match(text):
            self.phase = "go"
            self.packages += 1
            return Step(phase=self.phase, text=f"Go package {self.packages}: {text}")
        return self._other(text)

    @property
    def _inside(self) -> bool:
        """Whether a build inside the build runs now, as far as make's words tell."""
        own = f"{self._counted}/"
        return any(not own.startswith(f"{path}/") for path in self._open)

    @property
    def _serving(self) -> bool:
        return _SERVER in self._open

    def _moved(self, directory: str, *, entered: bool) -> Step | None:
        """The make of the Go server says nothing of its own for a long time: entering its directory is its sign."""
        if not entered:
            self._open[directory] -= 1
            self._open = +self._open
            return None
        self._directory = directory
        self._open[directory] += 1
        if directory != _SERVER or self.phase != "compile":
            return None
        self.phase = "go"
        return Step(phase=self.phase, text="building the Go server")

    def _compiled(self, done: int, total: int, what: str) -> Step | None:
        if self.phase == "install" or (self.phase == "go" and what.startswith("Built target")):
            return None
        if self._counted is None:
            self._counted = self._directory
        own = not self._inside or _EXTERNAL.match(what) is not None
        self.inner += not own and _OBJECT.match(what) is not None
        if self._serving:
            return Step(phase="native", text=_short(what))
        self.phase = "compile"
        if own:
            self._percent = max(self._percent, 100 * done // max(total, 1))
        phase = "native" if not own else "link" if what.startswith("Linking") else self.phase
        return Step(phase=phase, text=_short(what), done=self._percent, total=100)

    def _installed(self, path: str) -> Step:
        """A build inside installs too, long before the end: only files below our own prefix are the last phase."""
        if path.startswith(_PREFIX):
            self.phase = "install"
        return Step(phase=self.phase if self.phase == "install" else "native", text=f"installing {_base(path)}")

    def _other(self, text: str) -> Step | None:
        configuring = "configure" if self.phase == "configure" else "native"
        if match := _CMAKE_END.match(text):
            return Step(phase=configuring, text=match["what"].lower())
        if text.startswith("-- "):
            return Step(phase=configuring, text=text[3:]) if self.phase == "configure" else None
        if match := _CHECKING.match(text):
            return Step(phase=configuring, text=f"configure: checking {match['what']}")
        if match := _GO_COMMAND.match(text):
            self.phase = "go"
            return Step(phase="go", text=f"go {match['verb']} {_base(match['what'])}")
        if match := _GENERATED.match(text):
            return Step(phase=self.phase, text=f"generating {_base(match['path'])}")
        if match := _COMPILER_CALL.match(text):
            return Step(phase=self.phase, text=f"compiling {_base(match['path'])}")
        return None


def _base(path: str) -> str:
    return path.strip("\"' ").rsplit("/", 1)[-1]


def _short(what: str) -> str:
    """A CMake line in fewer words: what is compiled, and for which target."""
    match = _OBJECT.match(what)
    if match is None:
        return what
    target = _TARGET.search(match["path"])
    return f"compiling {_base(match['path']).removesuffix('.o')}" + (f" ({target['target']})" if target else "")
