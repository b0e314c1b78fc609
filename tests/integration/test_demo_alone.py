"""The whole demo on a machine without any engine: a Debian of its own, with neither Docker nor its socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.engine.docker import DockerEngine
from tests.conftest import missing

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(5400)]
TOP = Path(__file__).parents[2]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
NAMESPACES = (
    "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
)
SCRIPT = "set -eu; cd /srv/kwdb-build; sh .ci/setup; .venv/bin/nox -s demo; ! command -v docker; ! command -v dockerd"


@pytest.fixture
def machine(engine_address: str) -> Iterator[str]:
    """Tag of a plain Debian, made of packages; removed afterwards."""
    for program in ("mmdebstrap", "docker"):
        if shutil.which(program) is None:
            missing(program)
    tag = f"kwdb-build-test/debian:{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="kwdb-build-test-") as directory, DockerEngine.connect(engine_address) as engine:
        archive = Path(directory) / "debian.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", "--include=ca-certificates", "bookworm", archive], check=True)
        engine.import_base(archive, tag, environment={})
        archive.unlink()
        yield tag
        engine.remove_image(tag)


def test_the_demo_needs_no_engine(machine: str, engine_address: str, tmp_path: Path) -> None:
    """Nothing but the user namespaces that a machine has; what the network asks for (proxy, CA) is passed on."""
    copy = tmp_path / "kwdb-build"
    subprocess.run(["git", "clone", "--quiet", TOP, copy], check=True)
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")}
    mounts = [f"--volume={copy}:/srv/kwdb-build"]
    if CERTIFICATES.is_file():
        mounts.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
        passed |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), str(CERTIFICATES))
    argv = [
        "docker", "--host", engine_address, "run", "--rm", "--network=host", *NAMESPACES, *mounts,
        *(f"--env={name}={value}" for name, value in passed.items()), machine, "sh", "-c", SCRIPT,
    ]
    answer = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert answer.returncode == 0, answer.stdout[-5000:]
    assert "engine: sandbox" in answer.stdout
    assert "Upgraded" in answer.stdout
    assert "SELECT count(*) FROM plant.sensor: 2000" in answer.stdout
