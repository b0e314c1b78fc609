"""Networks as users have them: proxies and certificate authorities of the settings, for every child that downloads.

What the settings leave open stays as the machine has it. Builds themselves have no network, and nothing of this gets
into an image (see toolchain/image.py).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from kwdb_build.config import Settings

_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")


def apply(settings: Settings) -> None:
    """Put the settings' proxies and authorities into this process's environment, which git, apt and pip inherit.

    Servers are not touched by it: they start with the environment that was captured of them.
    """
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        if value := getattr(settings, name):
            os.environ[name] = os.environ[name.upper()] = value
    if (bundle := authorities(settings.ca_bundle)) is not None:
        os.environ["GIT_SSL_CAINFO"] = str(bundle)


def authorities(bundle: Path | None) -> Path | None:
    """One file of this system's certificate authorities and those of the setting ca_bundle; None without that setting.

    Programs take one file in place of their own, and hosts that no proxy stands before keep their public certificates.
    UsageError when the bundle cannot be read or holds no certificate.
    """
    return None if bundle is None else _joined(bundle.expanduser().absolute())


@functools.cache
def _joined(bundle: Path) -> Path:
    try:
        ssl.create_default_context(cafile=str(bundle))
        own = bundle.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the setting ca_bundle names no file of certificates: {bundle}", context=str(error),
            hint="it must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)",
        ) from error
    places = (ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES)
    system = next((Path(place) for place in places if place and Path(place).is_file()), None)
    directory = Path(tempfile.mkdtemp(prefix="kwdb-build-ca-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    joined = directory / "authorities.pem"
    joined.write_bytes((system.read_bytes() if system else b"").rstrip(b"\n") + b"\n" + own)
    directory.chmod(0o755)  # apt reads it as a user of its own
    joined.chmod(0o644)
    return joined
