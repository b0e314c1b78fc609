"""Who may go where in place."""

from __future__ import annotations

import pytest

from kwdb_build.errors import RefusedError
from kwdb_build.model import Version
from kwdb_build.server.readiness import Health
from kwdb_build.upgrade.gate import ServerFacts, require_healthy, require_ready, require_supported_version


@pytest.mark.parametrize(("status", "stranger", "words", "hint"), [
    (0, False, "cannot be reached", "firewall"), (503, False, "does not call the server ready", "wait until"),
    (0, True, "not known to be the server's", "kill -HUP"),
])
def test_a_server_that_does_not_call_itself_ready_is_left_alone(
    status: int, stranger: bool, words: str, hint: str
) -> None:
    page = Health(status=status, text="node is draining", url="https://db:8080/health?ready=1", stranger=stranger)
    with pytest.raises(RefusedError, match=words) as caught:
        require_ready(page)
    assert caught.value.context == "node is draining"
    assert page.url in caught.value.message
    assert hint in caught.value.hint
    require_ready(Health(status=200, text="{}"))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("V3.0.0", "V3.2.1", False), ("V3.1.0", "V3.2.0", False), ("V2.1.0", "V2.2.2", False),
        ("V3.1.0", "V3.1.0-1-gabcdef12", True), ("V3.1.0-2-gabcdef12", "V3.1.0", True), ("V3.2.0", "V3.10.0", False),
    ],
)
def test_allowed(old: str, new: str, same: bool) -> None:
    require_supported_version(Version.parse(old), Version.parse(new), allow_same=same)
    # Allowed for its own reason only: not without the flag, and never the other way round.
    refused = (old, new) if same else (new, old)
    with pytest.raises(RefusedError):
        require_supported_version(Version.parse(refused[0]), Version.parse(refused[1]), allow_same=not same)


@pytest.mark.parametrize(
    ("old", "new", "same", "words"),
    [
        ("V2.2.2", "V3.0.0", False, "cannot be upgraded in place"),
        ("V1.0.0", "V3.2.1", True, "cannot be upgraded in place"),
        ("V3.2.1", "V2.2.2", True, "cannot be upgraded in place"),
        ("V2.0.4", "V2.2.2", False, "cannot be upgraded in place"),
        ("V3.1.0", "V3.1.0", False, "not higher"),
        ("V3.1.0", "V3.1.0-4-gabcdef12", False, "not higher"),
        ("V3.2.1", "V3.2.0", True, "lower"),
        ("V3.1.0", "V3.1.0_RC1", True, "lower"),
    ],
)
def test_refused(old: str, new: str, same: bool, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        require_supported_version(Version.parse(old), Version.parse(new), allow_same=same)
    assert caught.value.hint


def test_the_way_of_export_and_import_is_named() -> None:
    with pytest.raises(RefusedError) as caught:
        require_supported_version(Version.parse("V2.2.2"), Version.parse("V3.1.0"), allow_same=False)
    assert "EXPORT" in caught.value.hint
    assert "IMPORT" in caught.value.hint


def test_health() -> None:
    require_healthy(ServerFacts(nodes=1), command="start-single-node")
    for facts in (ServerFacts(nodes=3), ServerFacts(nodes=1, unavailable_ranges=2),
                  ServerFacts(nodes=1, unfinished_jobs=("IMPORT running",))):
        with pytest.raises(RefusedError):
            require_healthy(facts, command="start")
