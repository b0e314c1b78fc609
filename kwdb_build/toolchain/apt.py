"""A private apt: its own lists, status and sources, so that packages are resolved for an empty Debian, not this host.

The machine's sources, keys, proxies and passwords are read; nothing of the machine is changed, and no root is needed.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from kwdb_build import command, network
from kwdb_build.errors import DependencyError
from kwdb_build.model import DebianPackage
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PRINTED = re.compile(r"^'[^']+' (?P<file>\S+\.deb) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")
_FETCHED = re.compile(r"^Get:(?P<number>\d+) ")
_OFFICIAL_COMPONENTS = {"main"}
_ORIGIN = "Debian"
_TIMEOUT_S = 3600.0
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN_SUITE = re.compile(r"^(?:buster|bullseye|bookworm|trixie|forky|duke)(?P<part>-updates|-security)?$")
_DEBIAN_ARCHIVE = re.compile(r"/debian(?:-security)?(?:/|$)")
SYSTEM_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One `deb` entry: options as deb822 fields ('Signed-By'), suites and components as given."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def stanza(self) -> str:
        """The entry in deb822 form."""
        lines = ["Types: deb", f"URIs: {' '.join(self.uris)}", f"Suites: {' '.join(self.suites)}"]
        if self.components:
            lines.append(f"Components: {' '.join(self.components)}")
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.options), ""])


def parse_sources(text: str, *, deb822: bool) -> list[Source]:
    """Entries of a .sources (deb822) or .list (one line each) file, without deb-src, disabled ones and comments."""
    return _parse_deb822(text) if deb822 else _parse_one_line(text)


_OPTION_FIELDS = {
    "signed-by": "Signed-By", "trusted": "Trusted", "check-valid-until": "Check-Valid-Until",
    "allow-insecure": "Allow-Insecure", "allow-weak": "Allow-Weak", "by-hash": "By-Hash",
}


def _parse_deb822(text: str) -> list[Source]:
    found = []
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n\s*\n", kept):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {"no", "false"}:
            continue
        found.append(Source(
            uris=tuple(fields.get("uris", "").split()), suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            options=tuple((_OPTION_FIELDS[key], value) for key, value in fields.items() if key in _OPTION_FIELDS),
        ))
    return found


_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>[^#]*)")


def _parse_one_line(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        given = (pair.partition("=") for pair in (match["options"] or "").split())
        options = tuple(
            (_OPTION_FIELDS[name.rstrip("+-")], value.replace(",", " "))
            for name, _, value in given if name.rstrip("+-") in _OPTION_FIELDS
        )
        found.append(Source(
            uris=(match["uri"],), suites=(match["suite"],), components=tuple(match["components"].split()),
            options=options,
        ))
    return found


def read_sources(path: Path) -> list[Source]:
    """Entries of a sources file, or of all sources files of a directory."""
    if path.is_dir():
        files = sorted([*path.glob("*.list"), *path.glob("*.sources")])
        return [source for file in files for source in read_sources(file)]
    text = path.read_text(encoding="utf-8", errors="replace")
    return parse_sources(text, deb822=path.suffix == ".sources")


def matching(sources: Sequence[Source], release: str) -> list[Source]:
    """Only what belongs to a Debian release (the suite, its updates and its security), and only its main component."""
    suites = {release, f"{release}-updates", f"{release}-security", f"{release}/updates"}
    found = []
    for source in sources:
        kept = tuple(suite for suite in source.suites if suite in suites)
        components = tuple(name for name in source.components if name in _OFFICIAL_COMPONENTS)
        if kept and components:
            found.append(Source(uris=source.uris, suites=kept, components=components, options=source.options))
    return found


def retargeted(sources: Sequence[Source], release: str) -> list[Source]:
    """The Debian archives among sources, asked for another release: a mirror of Debian has all that are supported."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Source] = {}
    for source in sources:
        uris = tuple(uri for uri in source.uris if _DEBIAN_ARCHIVE.search(uri))
        matches = [_DEBIAN_SUITE.match(suite) for suite in source.suites]
        suites = tuple(dict.fromkeys(f"{release}{match['part'] or ''}" for match in matches if match))
        if uris and suites and _OFFICIAL_COMPONENTS & set(source.components):
            found.setdefault((uris, suites), Source(
                uris=uris, suites=suites, components=tuple(sorted(_OFFICIAL_COMPONENTS)), options=source.options,
            ))
    return list(found.values())


def mirror_sources(url: str, release: str) -> list[Source]:
    """Sources of a Debian mirror given by its URL, with the security archive that stands beside `…/debian`.

    DependencyError for a URL that is none. Its signatures are checked with Debian's keyring.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https", "copy", "file"} or any(mark.isspace() for mark in url):
        raise DependencyError(
            f"{redact(url)} is no URL of a Debian mirror", hint="such as https://mirror.example/debian (http, https)"
        )
    plain = url.rstrip("/")
    signed = (("Signed-By", str(DEBIAN_KEYRING)),) if DEBIAN_KEYRING.is_file() else ()
    components = tuple(sorted(_OFFICIAL_COMPONENTS))
    found = [Source(uris=(plain,), suites=(release, f"{release}-updates"), components=components, options=signed)]
    if plain.endswith("/debian"):
        found.append(Source(
            uris=(f"{plain}-security",), suites=(f"{release}-security",), components=components, options=signed
        ))
    return found


def sources_for(release: str, *, chosen: str) -> tuple[list[Source], bool]:
    """The sources to use, and whether only Debian's own archives count among them.

    chosen (the setting apt_sources) is a file, taken whole: whoever names a file means it; or the URL of a Debian
    mirror. This machine's own files are filtered: third-party archives may carry the release's name and must not leak
    into a toolchain. Where they speak of another Debian, the same archives are asked for this one.
    """
    if "://" in chosen:
        return mirror_sources(chosen, release), True
    if chosen:
        path = Path(chosen).expanduser()
        if not path.exists():
            raise DependencyError(f"the apt sources {chosen} do not exist", hint="mend the setting apt_sources")
        return read_sources(path), False
    own = [entry for path in SYSTEM_SOURCES if path.exists() for entry in read_sources(path)]
    found = matching(own, release) or retargeted(own, release)
    if not found:
        raise DependencyError(
            f"this machine's apt sources have no Debian {release}",
            context=f"looked at {', '.join(map(str, SYSTEM_SOURCES))}",
            hint=f"name a mirror (URL) or sources of Debian {release} by the setting apt_sources, or an image of "
            "it by the setting base_image",
        )
    return found, True


class PrivateApt:
    """apt-get with a root of its own below `directory` (made by the caller, thrown away by the caller)."""

    def __init__(self, directory: Path, *, environment: Mapping[str, str], log: Path | None) -> None:
        self._directory = directory
        self._environment = {**environment, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C.UTF-8"}
        self._log = log

    @classmethod
    def create(
        cls, directory: Path, sources: Sequence[Source], *, architecture: str, only_debian: bool,
        ca_bundle: Path | None = None, log: Path | None = None,
    ) -> Self:
        """Write the private configuration and fetch the package lists.

        Errors: DependencyError when apt is missing or an archive cannot be read.
        """
        if not shutil.which("apt-get"):
            raise DependencyError(
                "apt-get is missing: Debian packages cannot be resolved here",
                hint="run on Debian or Ubuntu, or name a ready Debian image with the setting base_image",
            )
        for name in ("lists/partial", "archives/partial", "sources"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources" / "used.sources").write_text("\n".join(source.stanza() for source in sources))
        (directory / "preferences").write_text(_ONLY_DEBIAN if only_debian else "")
        settings = configuration(directory, architecture, transport_settings(), network.authorities(ca_bundle))
        fd = os.open(directory / "apt.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # proxies carry passwords
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(settings)
        apt = cls(directory, environment=os.environ, log=log)
        apt._get("update", "-q", what="the package lists cannot be read")
        return apt

    def resolve(self, packages: Sequence[str]) -> list[DebianPackage]:
        """Everything that an empty system needs to get these packages, Debian's essential ones included."""
        done = self._get(
            "install", "-q", "-y", "--no-install-recommends", "--print-uris", "-o", "Acquire::ForceHash=SHA256",
            "?essential", *packages, what="the packages cannot be resolved",
        )
        found = parse_printed(done.stdout)
        if not found:
            raise DependencyError(
                "apt resolved the packages to nothing", context=redact(done.stdout)[-2000:], log=self._log
            )
        return found

    def available(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Versions on offer of each package, newest first."""
        done = command.run(["apt-cache", "madison", *names], env=self._environment, log=self._log)
        return parse_madison(done.stdout)

    def download(self, packages: Sequence[DebianPackage], into: Path, *, on_number: Callable[[int], None]) -> None:
        """Fetch exactly these archives into a directory; apt checks them against the archive's signed lists."""
        def line(text: str) -> None:
            if match := _FETCHED.match(text):
                on_number(int(match["number"]))

        into.mkdir(parents=True, exist_ok=True)
        self._get("download", "-q", *map(str, packages), what="packages cannot be fetched", cwd=into, on_line=line)

    def _get(
        self, *words: str, what: str, cwd: Path | None = None, on_line: Callable[[str], None] | None = None
    ) -> command.Completed:
        done = command.run(
            ["apt-get", *words], check=False, env=self._environment, cwd=cwd, timeout_s=_TIMEOUT_S, on_line=on_line
        )
        if self._log is not None:  # with --print-uris apt tells the passwords of its sources
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(redact(done.stdout + done.stderr))
        # apt-get update exits 0 when an archive does not answer and old lists would do; here there are none
        failed = [text for text in done.stderr.splitlines() if text.startswith(("E:", "W: Failed to fetch"))]
        if not done.ok or (words[0] == "update" and failed):
            seen = "\n".join(failed) or "\n".join((done.stderr or done.stdout).splitlines()[-command.TAIL_LINES:])
            raise DependencyError(
                what, context=redact(seen), log=self._log,
                hint="check the network, the proxy and the apt sources (setting apt_sources; else this machine's own)",
            )
        return done


_ONLY_DEBIAN = f"""Package: *
Pin: release o={_ORIGIN}
Pin-Priority: 500

Package: *
Pin: release c=*
Pin-Priority: -1
"""


def transport_settings() -> str:
    """This machine's apt settings on how to download: proxies, certificates, retries. Hooks and the rest stay out."""
    done = command.run(["apt-config", "dump"], check=False)
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith("Acquire::"))


def configuration(directory: Path, architecture: str, transport: str, ca_bundle: Path | None) -> str:
    """Text of the private apt.conf."""
    lines = [
        'Dir::Etc::main "/dev/null";', 'Dir::Etc::parts "/dev/null";', 'Dir::Etc::sourcelist "/dev/null";',
        f'Dir::Etc::sourceparts "{directory}/sources/";', f'Dir::Etc::preferences "{directory}/preferences";',
        'Dir::Etc::preferencesparts "/dev/null";', f'Dir::State "{directory}";',
        f'Dir::State::status "{directory}/status";', f'Dir::State::lists "{directory}/lists/";',
        f'Dir::Cache "{directory}";', f'Dir::Cache::archives "{directory}/archives/";',
        f'APT::Architecture "{architecture}";', f'APT::Architectures {{"{architecture}";}};',
        'APT::Sandbox::User "root";', 'APT::Get::Always-Include-Phased-Updates "true";', transport,
        'Acquire::Languages "none";', 'Acquire::Retries "3";',
    ]
    if ca_bundle is not None:
        lines.append(f'Acquire::https::CaInfo "{ca_bundle}";')
    return "\n".join(lines) + "\n"


def parse_printed(text: str) -> list[DebianPackage]:
    """`apt-get --print-uris` -> packages, sorted by name; the file name is name_version_architecture.deb."""
    found = []
    for line in text.splitlines():
        if match := _PRINTED.match(line.strip()):
            name, version, architecture = unquote(match["file"]).removesuffix(".deb").rsplit("_", 2)
            found.append(
                DebianPackage(name=name, version=version, architecture=architecture, sha256=match["sha256"])
            )
    return sorted(found, key=lambda package: package.name)


def parse_madison(text: str) -> dict[str, list[str]]:
    """`apt-cache madison` -> versions of each package, newest first, each once."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) >= 3 and parts[1] not in found.setdefault(parts[0], []):  # noqa: PLR2004 - name, version, origin
            found[parts[0]].append(parts[1])
    return found
