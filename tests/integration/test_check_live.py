"""`check`, `toolchain` and `doctor` as a user calls them: a real image, a real build, a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.model import Artifact
from kwdb_build.toolchain.load import load
from tests.integration.certs import certificates
from tests.integration.enginebox import tiny_root
from tests.integration.tool import Tool, clean_environment, share_builds
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories
from tests.unit.toolchain.toolchainbox import folder, write_lock

if TYPE_CHECKING:
    from kwdb_build.engine.docker import DockerEngine

pytestmark = pytest.mark.engine


@pytest.fixture
def tool(
    tmp_path: Path, repositories: MiniRepositories, engine_address: str, mini_build: Callable[[str], Artifact]
) -> Tool:
    """A command line with a home that has one release built."""
    home = tmp_path / "home"
    share_builds(home, [mini_build("V1.0.0")])
    return Tool(home=home, repositories=repositories, docker_host=engine_address)


def grouped(document: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in document["checks"]:
        groups.setdefault(row["group"], {})[row["name"]] = row
    return groups


def test_check_looks_at_image_host_machine_build_and_server(
    tool: Tool, make_server: Callable[..., Instance], tmp_path: Path
) -> None:
    certificates(tmp_path / "certs")  # for two days
    server = make_server(certs=tmp_path / "certs", rows=False)
    answer = tool("check", "V1.0.0", "--store", str(server.store), "--json")
    assert answer.code == 0, answer.err
    groups = grouped(answer.json)
    assert set(groups) == {"image", "host", "links", "machine", "server"}
    assert {row["verdict"] for row in groups["image"].values()} <= {"ok", "skip"}
    assert {name: row["verdict"] for name, row in groups["links"].items()} == {
        "glibc of this host": "ok", "libstdc++ of this host": "ok", "shared libraries of this host": "ok"
    }
    assert "by ldd" in groups["links"]["shared libraries of this host"]["found"]
    assert groups["machine"]["memory"]["found"].partition(": -j")[2].isdigit()
    assert f"file system of the store {server.store}" in groups["server"]
    assert groups["server"]["certificate node.crt"]["verdict"] == "warn"
    assert "days left" in groups["server"]["certificate node.crt"]["found"]
    assert "cert create-node" in groups["server"]["certificate node.crt"]["fix"]

    told = tool("check", "V1.0.0", "--host", "--store", str(server.store))
    for title in ("build image", "this host, to run KWDB", "this host, to load the stored build",
                  "this host, to compile without a container", "this machine", "running server"):
        assert f"V1.0.0 with minikwdb: {title}" in told.out
    assert "not found" not in told.err or "what to do: " in told.err


@pytest.mark.parametrize(("words", "code", "said"), [
    (("--pid", "1"), 10, "no running kwbase matches --pid 1"), (("--memory", "lots"), 2, "not a size: 'lots'"),
])
def test_what_is_wrong_with_a_call_is_said_before_an_image_is_made(
    tool: Tool, words: tuple[str, ...], code: int, said: str
) -> None:
    answer = tool("check", "V1.0.0", *words)
    assert answer.code == code
    assert said in answer.err or "no running kwbase found" in answer.err
    assert "[1/3]" not in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace takes root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="makes namespaces with unshare")
def test_a_server_in_a_container_is_unknown_and_the_rest_is_looked_at(
    tool: Tool, install_server: Callable[..., Instance]
) -> None:
    server = install_server(background=False, prefix=("unshare", "--pid", "--fork", "--mount-proc"))
    server.start()
    answer = tool("check", "V1.0.0", "--store", str(server.store), "--json")
    assert answer.code == 0, answer.err
    groups = grouped(answer.json)
    assert groups["machine"]["memory"]["verdict"] != "unknown"
    row = groups["server"]["server"]
    assert row["verdict"] == "unknown"
    assert "container" in row["found"]


def changed(tool: Tool, tree: Path, old: str, new: str) -> Path:
    """A repository whose branch `changed` has another README."""
    environment = clean_environment({"GIT_ALLOW_PROTOCOL": "file"})
    subprocess.run(["git", "clone", "-q", tool.repositories.main, tree], check=True, env=environment, capture_output=True)
    subprocess.run(["git", "-C", tree, "checkout", "-qb", "changed"], check=True)
    readme = tree / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert old in text
    readme.write_text(text.replace(old, new, 1), encoding="utf-8")
    subprocess.run(
        ["git", "-C", tree, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "changed"], check=True
    )
    return tree


def test_check_names_a_row_that_cannot_be_read(tool: Tool, tmp_path: Path) -> None:
    """Unknown and named, and no build is refused for it."""
    tree = changed(tool, tmp_path / "kwdb", "| v1.16+", "| quite new")
    answer = tool("check", "changed", "--json", "--url", str(tree))
    assert answer.code == 0, answer.err
    row = grouped(answer.json)["image"]["Go"]
    assert (row["verdict"], row["required"]) == ("unknown", "?")
    assert "quite new" in row["found"]
    assert row["where"].startswith("README.md:")


def test_a_failed_check_is_one_document(tool: Tool, tmp_path: Path) -> None:
    """A tree that asks for more than the image has."""
    tree = changed(tool, tmp_path / "kwdb", "| v1.16+", "| v9.9+")
    answer = tool("check", "changed", "--json", "--url", str(tree))
    assert answer.code == 5, answer.err
    assert answer.json["error"]["exit_code"] == 5
    assert grouped(answer.json["result"])["image"]["Go"]["verdict"] == "fail"


def run(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kwdb_build", *words, "--home", str(home)], stdin=subprocess.DEVNULL, text=True,
        capture_output=True, check=False, timeout=240, env=clean_environment(environment),
    )


def test_an_image_is_carried_to_a_machine_without_network(engine: DockerEngine, tmp_path: Path) -> None:
    made = folder(tmp_path, (Path(__file__).parents[1] / "minikwdb/toolchain/toolchain.toml").read_text().replace(
        'name = "minikwdb"', f'name = "carried-{os.getpid()}"'), name="carried")
    write_lock(made)
    toolchain = load(f"{made}/", search=tmp_path)
    engine.import_base(tiny_root(tmp_path / "tiny.tar"), toolchain.image_tag, environment={})
    home, carried = tmp_path / "home", tmp_path / "carried.tar"
    where = ("--docker-host", engine.address)
    try:
        done = run("toolchain", "export", f"{made}/", str(carried), *where, home=home)
        assert done.returncode == 0, done.stderr
        assert toolchain.image_tag in done.stdout
        engine.remove_image(toolchain.image_tag)
        done = run("toolchain", "import", str(carried), *where, "--toolchain", f"{made}/", "--json", home=home)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["toolchain"] == toolchain.name
        assert engine.image_id(toolchain.image_tag) == json.loads(done.stdout)["image"]["identity"]
        stranger = run("toolchain", "import", str(carried), *where, home=home)
        assert "no toolchain here has the lock" in stranger.stderr
    finally:
        engine.remove_image(toolchain.image_tag)
    nowhere = run("toolchain", "import", str(tmp_path / "none.tar"), *where, home=home)
    assert nowhere.returncode == 5
    carried.write_bytes(carried.read_bytes()[:-5000])
    refused = run("toolchain", "import", str(carried), *where, home=home)
    assert refused.returncode == 6
    assert engine.image_id(toolchain.image_tag) is None


def test_what_a_toolchain_holds(tmp_path: Path) -> None:
    shown = run("toolchain", "show", "kwdb-3.2-debian11", home=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "glibc" in shown.stdout
    assert "libc6" in shown.stdout
    listed = run("toolchain", "list", "--json", home=tmp_path)
    assert {entry["name"]: entry["glibc"] for entry in json.loads(listed.stdout)["toolchains"]} == {
        "kwdb-2.2": "2.31", "kwdb-3.2": "2.36", "kwdb-3.2-debian11": "2.31"
    }
    nearly = run("toolchain", "show", "kwdb-3.3", home=tmp_path)
    assert nearly.returncode == 2
    assert "did you mean kwdb-3.2?" in nearly.stderr


def test_doctor_sees_the_engine(engine: DockerEngine, tmp_path: Path) -> None:
    done = run("doctor", "--json", home=tmp_path / "home", KWDB_BUILD_DOCKER_HOST=engine.address)
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows[f"engine at {engine.address}"]["verdict"] == "ok"
    assert rows["git"]["verdict"] == "ok"
    assert not (tmp_path / "home").exists()
    gone = run("doctor", home=tmp_path / "home", KWDB_BUILD_DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert f"engine at unix://{tmp_path}/none.sock" in gone.stdout
