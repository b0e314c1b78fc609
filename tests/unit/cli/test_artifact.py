"""The verbs on stored builds as a user calls them: answers, exit codes, nothing left half done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.build.store import ArtifactStore
from kwdb_build.cli import run
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact
from tests.unit.build.artifactbox import add_build, spoil

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def artifact(home: Path, tmp_path: Path) -> Artifact:
    store = ArtifactStore(home / "artifacts")
    store.root.parent.mkdir()
    try:
        return add_build(store, tmp_path)
    finally:
        store.close()


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def invoke(verb: str, *words: str, place: Path = home) -> tuple[int, Any]:
        code = run(["artifact", verb, "--home", str(place), "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    return invoke


def test_list_and_show(call: Call, artifact: Artifact) -> None:
    code, answer = call("list")
    assert code == 0
    (one,) = answer["artifacts"]
    assert (one["key"], one["version"], one["provenance"], one["signatures"]) == (
        artifact.key.digest, "V3.2.1", True, [],
    )
    code, answer = call("show", artifact.key.digest[:8])
    assert code == 0
    assert answer["artifact"]["attestation"]["provenance"]
    assert [entry["path"] for entry in answer["artifact"]["manifest"]] == [entry.path for entry in artifact.files]


def test_nothing_stored(call: Call) -> None:
    assert call("list") == (0, {"schema": 1, "artifacts": [], "damaged": []})
    code, answer = call("verify", "latest")
    assert code == ExitCode.USAGE
    assert answer["error"]["reference"] == "unknown-artifact"


def test_people_see_tables(artifact: Artifact, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, words in (("list", ("V3.2.1", "provenance")), ("show", (artifact.key.digest, "SLSA v1")),
                        ("verify", ("files", "sbom", "signature"))):
        argv = ["artifact", verb, "--home", str(home), *([] if verb == "list" else ["latest"])]
        assert run(argv) == 0
        said = capsys.readouterr().out
        assert [word for word in words if word not in said] == []


def test_verify_names_the_file_and_changes_nothing(call: Call, artifact: Artifact) -> None:
    assert call("verify", "V3.2.1")[0] == 0
    spoil(artifact.path / "lib/libkwdbts2.so")
    code, answer = call("verify", "V3.2.1")
    assert code == ExitCode.ARTIFACT
    assert "lib/libkwdbts2.so: content changed" in answer["error"]["context"]
    assert {row["name"]: row["verdict"] for row in answer["result"]["checks"]}["files"] == "fail"
    assert artifact.path.exists()


def test_a_missing_signature_has_its_own_exit_code(call: Call, artifact: Artifact, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.touch()
    code, answer = call("verify", "latest", "--allowed-signers", str(allowed))
    assert code == ExitCode.SIGNATURE
    assert "no ssh signature" in answer["error"]["context"]


def test_sign_then_verify_then_carry_to_another_home(call: Call, artifact: Artifact, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"me {key.with_suffix('.pub').read_text()}")
    code, answer = call("sign", "latest", "--with", f"ssh:{key}")
    assert (code, answer["artifact"]["signatures"]) == (0, ["ssh"])
    code, answer = call("sign", "latest", "--with", f"ssh:{key}")
    assert (code, answer["error"]["reference"]) == (ExitCode.USAGE, "signed-already")
    assert call("sign", "latest", "--with", f"ssh:{key}", "--replace")[0] == 0

    code, answer = call("export", "latest", "-o", str(tmp_path))
    assert code == 0
    file = Path(answer["file"])
    assert file.parent == tmp_path
    assert len(answer["sha256"]) == 64
    other = tmp_path / "other"
    other.mkdir()
    stranger = tmp_path / "stranger"
    stranger.write_text("you " + "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl x\n")
    code, _ = call("import", str(file), "--allowed-signers", str(stranger), place=other)
    assert code == ExitCode.SIGNATURE
    assert call("list", place=other)[1]["artifacts"] == []
    code, answer = call("import", str(file), "--allowed-signers", str(allowed), place=other)
    assert (code, answer["new"], answer["artifact"]["key"]) == (0, True, artifact.key.digest)
    assert call("verify", "latest", "--allowed-signers", str(allowed), place=other)[0] == 0


def test_prune_says_what_it_would_do_and_then_does_it(call: Call, artifact: Artifact) -> None:
    assert call("prune")[0] == ExitCode.USAGE
    code, answer = call("prune", "--keep", "0", "--dry-run")
    assert (code, [one["removed"] for one in answer["artifacts"]]) == (0, [True])
    assert artifact.path.exists()
    assert call("prune", "--older-than", "1d")[1]["freed_bytes"] == 0
    assert call("prune", "--max-size", "1g")[1]["freed_bytes"] == 0
    assert call("prune", "--older-than", "soon")[0] == ExitCode.USAGE
    code, answer = call("prune", "--keep", "0")
    assert answer["freed_bytes"] > 0
    assert not artifact.path.exists()


def test_what_the_last_upgrade_needs_is_not_pruned(call: Call, artifact: Artifact, home: Path, tmp_path: Path) -> None:
    from kwdb_build.files import sha256_of, write_json

    store = ArtifactStore(home / "artifacts")
    old = add_build(store, tmp_path, "old", version="V3.2.0")
    spare = add_build(store, tmp_path, "spare", version="V3.1.0")
    store.close()
    place = home / "runs" / "0001-20261122T121401Z"
    (place / "replaced").mkdir(parents=True)
    write_json(place / "artifact.json", artifact)
    write_json(place / "result.json", {"run": place.name, "outcome": "upgraded", "exit_code": 0})
    write_json(place / "replaced" / "replace.json", {"schema": 1, "files": [{
        "target": "/kw/bin/kwbase", "source": str(artifact.kwbase), "old": sha256_of(old.kwbase), "new": "x",
        "kept": None, "metadata": {"mode": 0o755, "uid": 0, "gid": 0, "mtime_ns": 0, "xattrs": {}},
    }]})
    _, answer = call("prune", "--keep", "0")
    assert {one["version"]: (one["removed"], one["reason"]) for one in answer["artifacts"]} == {
        "V3.2.1": (False, f"new version of run {place.name}, the last one"),
        "V3.2.0": (False, f"old version of run {place.name}, the last one"),
        "V3.1.0": (True, "not one of the newest"),
    }
    assert (artifact.path.exists(), old.path.exists(), spare.path.exists()) == (True, True, False)


def test_a_run_that_cannot_be_read_keeps_its_build(call: Call, artifact: Artifact, home: Path) -> None:
    """Its result was cut off by a full disk, say: what it may need to go back stays, and prune does not fail."""
    from kwdb_build.files import write_json

    place = home / "runs" / "0001-20261122T121401Z"
    place.mkdir(parents=True)
    write_json(place / "artifact.json", artifact)
    (place / "result.json").write_text('{"run": "0001')
    code, answer = call("prune", "--keep", "0")
    assert code == 0
    assert [(one["removed"], one["reason"]) for one in answer["artifacts"]] == [
        (False, f"run {place.name} cannot be read, and may need it"),
    ]
    assert artifact.path.exists()
