"""The right server, on the right store, with the right files, and well."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.server import proc, readiness
from kwdb_build.verify import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.sql import Session
    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.plugin import Check
    from kwdb_build.verify.request import VerifyRequest


def test_process(wanted: VerifyRequest, check: Check) -> None:
    """The server process runs."""
    if not wanted.pid:
        pytest.skip("the process is not visible from here")
    check.required = f"pid {wanted.pid}, as it became ready"
    assert proc.is_alive(wanted.pid, wanted.started_at), f"process {wanted.pid} is gone: it ended after its start"
    check.found = "running"


def test_version(wanted: VerifyRequest, session: Session, check: Check) -> None:
    """Version."""
    check.required = wanted.expected_version
    text = probe.version(session)
    check.found = probe.version_word(text)
    assert check.found == wanted.expected_version, f"the server says {text}"


def test_identity(session: Session, before: Baseline, check: Check) -> None:
    """Same cluster and node."""
    check.required = f"cluster {before.identity.cluster_id}, node {before.identity.node_id}"
    now = probe.identity(session)
    check.found = f"cluster {now.cluster_id}, node {now.node_id}"
    check.fix = "it runs on another store: check --store, the working directory and the mounts"
    assert now == before.identity, f"this is {check.found}"


def test_libraries(wanted: VerifyRequest, check: Check) -> None:
    """Libraries that the process really maps."""
    if not (wanted.pid and wanted.libraries):
        pytest.skip("no process or no expected libraries were named")
    # A link may lead to a file of another name (libcommon.so.3.1.0), and the kernel shows that one.
    real = {path: str(Path(path).resolve()) for path in wanted.libraries}
    names = {Path(path).name for path in (*real, *real.values())}
    mapped = {
        path for path in proc.parse_maps(proc.read_text(wanted.pid, "maps"))
        if Path(path.removesuffix(" (deleted)")).name in names
    }
    check.required = ", ".join(sorted(wanted.libraries))
    check.found = ", ".join(sorted(mapped))
    check.fix = "look at LD_LIBRARY_PATH and at the RUNPATH of the binary"
    accepted = dict(wanted.libraries) | {real[path]: one for path, one in wanted.libraries.items()}
    strangers = mapped - accepted.keys()
    assert not strangers, f"mapped from elsewhere or removed since: {', '.join(sorted(strangers))}"
    missing = [path for path in wanted.libraries if not {path, real[path]} & mapped]
    assert not missing, f"not mapped: {', '.join(sorted(missing))}"
    root = Path(f"/proc/{wanted.pid}/root")
    for path in mapped:
        with (root / path.lstrip("/")).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        assert digest == accepted[path], f"{path} is not the file that was installed (sha256 {digest[:16]})"


@pytest.mark.parametrize("path", ["/health", "/health?ready=1"])
def test_health(
    wanted: VerifyRequest, path: str, check: Check, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """Health by HTTP."""
    if wanted.http is None:
        pytest.skip("the server has no HTTP address that can be reached from here")
    page, name = wanted.http, wanted.login.address.host
    check.required = str(readiness.OK)

    def answers() -> bool:
        answer = readiness.ask_health(page, wanted.page_certificates, name=name, path=path, timeout_s=5.0)
        check.found = answer.text
        return answer.status == readiness.OK

    assert eventually(answers), f"no 200: {check.found}"


def test_liveness(
    session: Session, before: Baseline, check: Check, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """Node is live."""
    check.required = f"node {before.identity.node_id} live"
    nodes: dict[str, bool] = {}

    def lives() -> bool:
        nodes.update(probe.live_nodes(session))
        return nodes.get(before.identity.node_id, False)

    assert eventually(lives), f"gossip says {nodes}"
    check.found = f"{sum(nodes.values())} of {len(nodes)} nodes live"
    down = [node for node, is_live in nodes.items() if not is_live]
    if down:
        check.warn(f"not live: node {', '.join(down)}")


def test_ranges(
    session: Session, before: Baseline, check: Check, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    """No range is unavailable."""
    if "ranges" in before.unread:
        pytest.skip(f"not recorded before: {before.unread['ranges']}")
    limits = before.unavailable_ranges, before.underreplicated_ranges
    check.required = f"at most {limits[0]} unavailable, {limits[1]} under-replicated"
    found = (-1, -1)

    def healthy() -> bool:
        nonlocal found
        found = probe.ranges(session)
        return found[0] <= limits[0] and found[1] <= limits[1]

    is_healthy = eventually(healthy)
    check.found = f"{found[0]} unavailable, {found[1]} under-replicated"
    assert found[0] <= limits[0], check.found
    if not is_healthy:
        check.warn("this figure is about 10 s old on the server; look again")
