"""Stored builds on their way: imported ones are found by a build of the same reference, and signatures go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwdb_build.build import archive, intake
from kwdb_build.build.inspection import attestation_of, inspect, require
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Console, Progress
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact, Verdict
from kwdb_build.upgrade.workshop import Workshop
from tests.integration.tool import Answer, Tool, call
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories
from tests.unit.build.keys import KINDS, Key, make_key, own_gnupg

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
TOOLCHAIN = Path(__file__).parents[1] / "minikwdb" / "toolchain"


def test_an_imported_build_is_looked_up_by_the_same_key_without_an_engine(
    mini_build: Callable[[str], Artifact], repositories: MiniRepositories, tmp_path: Path
) -> None:
    made = mini_build("V1.0.0")
    rows = inspect(made, Trust())
    require(made, rows)
    assert {row.verdict for row in rows} == {Verdict.OK, Verdict.SKIP}
    assert attestation_of(made).provenance
    file = tmp_path / "carried.tar.zst"
    source = ArtifactStore(made.path.parent)
    archive.export(source, made, file, force=False, progress=Progress())
    source.close()

    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    settings = Settings(home=home, toolchain=str(TOOLCHAIN), docker_host=f"unix://{tmp_path}/no-engine")
    workshop = Workshop(settings, Console(), home / "logs")
    intake.import_archive(workshop.store, file, trust=Trust(), foreign=False, progress=Progress())
    prefix, replacement = repositories.redirect
    tree = workshop.fetch("V1.0.0", url=str(repositories.main), redirects=(f"{prefix}={replacement}",))
    found = workshop.build(tree)
    assert found.key == made.key
    assert found.files == made.files
    assert found.path.is_relative_to(home)
    workshop.store.close()


@pytest.fixture
def gnupg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with own_gnupg(monkeypatch):
        yield


def options(key: Key) -> list[str]:
    """How a person names whom to trust."""
    given = {"--allowed-signers": key.trust.allowed_signers, "--keyring": key.trust.keyring, "--pubkey": key.trust.pubkey}
    return [str(word) for option, value in given.items() if value for word in (option, value)]


def artifact(home: Path, verb: str, *words: str) -> Answer:
    return call("artifact", verb, "--home", str(home), *words)


@pytest.mark.usefixtures("gnupg")
def test_a_build_is_signed_by_every_kind_of_key_carried_and_verified(tool: Tool, tmp_path: Path) -> None:
    keys = {kind: make_key(kind, tmp_path / kind, "builder") for kind in KINDS}
    stranger = make_key("ssh", tmp_path / "keys", "stranger")
    for kind, key in keys.items():
        answer = tool("build", "V1.1.0", "--sign", f"{kind}:{key.signer.key}", "--json")
        assert answer.code == 0, answer.err
    again = tool("build", "V1.1.0", "--sign", f"ssh:{stranger.signer.key}")
    assert again.code == 0, again.err
    assert "not signed again" in again.err, "what the first one signed stays, as is seen below"
    file = tmp_path / "carried.tar.zst"
    assert artifact(tool.home, "export", "V1.1.0", "-o", str(file)).code == 0
    there = tmp_path / "there"
    refused = artifact(there, "import", str(file), *options(stranger))
    assert refused.code == ExitCode.SIGNATURE, refused.err
    assert artifact(there, "show", "V1.1.0").code == ExitCode.USAGE, "nothing came in"
    imported = artifact(there, "import", str(file), *options(keys["gpg"]), "--json")
    assert imported.code == 0, imported.err
    assert set(imported.json["artifact"]["signatures"]) == set(KINDS)
    for kind, key in keys.items():
        verified = artifact(there, "verify", "V1.1.0", *options(key), "--json")
        assert verified.code == 0, verified.err
        [row] = [row for row in verified.json["checks"] if row["name"] == "signature"]
        assert (row["verdict"], row["found"].partition(":")[0]) == ("ok", kind)
    assert artifact(there, "verify", "V1.1.0", *options(stranger)).code == ExitCode.SIGNATURE


@pytest.mark.slow
def test_an_upgrade_signs_what_it_installs_or_does_not_begin(
    tool: Tool, make_server: Callable[..., Instance], tmp_path: Path
) -> None:
    key = make_key("ssh", tmp_path / "keys", "builder")
    server = make_server("V1.0.0")
    pid = server.pid()
    refused = tool.upgrade(server, "V1.1.0", "--sign", f"ssh:{tmp_path}/no-such-key")
    assert refused.code == ExitCode.USAGE, refused.err
    locked = make_key("ssh", tmp_path / "keys", "locked", passphrase="correct horse")
    refused = tool.upgrade(server, "V1.1.0", "--sign", f"ssh:{locked.signer.key}")
    assert refused.code == ExitCode.SIGNATURE, refused.err
    assert server.pid() == pid
    done = tool.upgrade(server, "V1.1.0", "--sign", f"ssh:{key.signer.key}")
    assert done.code == 0, done.err
    verified = artifact(tool.home, "verify", "V1.1.0", *options(key))
    assert verified.code == 0, verified.err
