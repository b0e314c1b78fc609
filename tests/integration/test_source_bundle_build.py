"""A whole build out of a bundle in an empty network namespace, and an upgrade with the same patch by git."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact
from tests.integration.tool import TOOLCHAIN, Tool, call, share_builds
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories
from tests.unit.source.sourcebox import git


@pytest.fixture
def channel_patch(repositories: MiniRepositories, tmp_path: Path) -> Path:
    """The patch that the branch `patched` has on top of V1.1.0, as a developer would export it."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--no-local", "--branch", "patched", f"file://{repositories.main}", str(clone))
    git(clone, "format-patch", "--quiet", "-1", "--output-directory", str(tmp_path / "patches"))
    return tmp_path / "patches"


@pytest.mark.engine
@pytest.mark.slow  # a whole build, and 0.7 GB of image packed and unpacked
@pytest.mark.timeout(2400)
def test_build_from_a_bundle_without_network_then_upgrade_with_the_same_patch(
    engine: DockerEngine, engine_address: str, mini_toolchain: object, mini_home: Path, repositories: MiniRepositories,
    mini_build: Callable[[str], Artifact], channel_patch: Path, tmp_path: Path, no_network: tuple[str, ...],
    make_server: Callable[..., Instance],
) -> None:
    # A toolchain of its own has an image that only the bundle brings along.
    folder = tmp_path / "toolchain"
    shutil.copytree(TOOLCHAIN, folder)
    text = (folder / "toolchain.toml").read_text(encoding="utf-8")
    mark = f'BUNDLE_TEST = "{os.getpid()}"'
    (folder / "toolchain.toml").write_text(text.replace("[environment]", f"[environment]\n{mark}"), encoding="utf-8")
    from kwdb_build.toolchain.load import load, toolchains_root

    ours = load(f"{folder}/", search=toolchains_root(), home=tmp_path / "origin")
    theirs = load(f"{TOOLCHAIN}/", search=toolchains_root(), home=mini_home)
    assert ours.image_tag != theirs.image_tag
    repository, _, tag = ours.image_tag.partition(":")
    engine._api.tag(theirs.image_tag, repository, tag)
    prefix, replacement = repositories.redirect
    source = ("--url", str(repositories.main), "--redirect", f"{prefix}={replacement}", "--patch", str(channel_patch))
    file = tmp_path / "V1.1.0.kwdb-bundle"
    try:
        made = call("bundle", "create", "V1.1.0", "-o", str(file), "--home", str(tmp_path / "origin"), "--toolchain",
                    str(folder), "--docker-host", engine_address, *source)
    finally:
        engine._api.remove_image(ours.image_tag, noprune=True)
    assert made.code == 0, made.err
    try:
        away = tmp_path / "away"
        # Only the engine's socket leads out of here.
        built = call("build", "--bundle", str(file), "--offline", "--home", str(away), "--docker-host", engine_address,
                     "--json", prefix=no_network)
        assert built.code == 0, built.err
        assert engine.image_id(ours.image_tag) is not None, "the image came out of the bundle"
    finally:
        if engine.image_id(ours.image_tag) is not None:
            engine._api.remove_image(ours.image_tag, noprune=True)
    artifact = built.json["artifact"]
    assert artifact["version"]["text"].startswith("V1.1.0-patched-")

    # The same source and patch by git has the same key: the upgrade finds this build.
    share_builds(tmp_path / "home", [mini_build("V1.0.0")])
    shutil.copytree(away / "artifacts" / artifact["key"]["digest"], tmp_path / "home/artifacts" / artifact["key"]["digest"])
    tool = Tool(home=tmp_path / "home", repositories=repositories, docker_host=engine_address)
    server = make_server("V1.0.0")
    words = ("--patch", str(channel_patch), "--toolchain", str(folder))
    answer = tool.upgrade(server, "V1.1.0", *words)
    assert answer.code == ExitCode.OK, answer.err
    result = json.loads((tool.newest_run() / "result.json").read_text(encoding="utf-8"))
    assert result["build_key"] == artifact["key"]["digest"]
    assert any("0001-" in line and line.startswith("patch 1:") for line in result["source"])
    assert "patch 1:" in (tool.newest_run() / "report.html").read_text(encoding="utf-8")
    assert artifact["version"]["text"] in server.value("SELECT version()")
    assert '{"Channel", "patched"}' in call("source", "diff", "--home", str(tool.home)).out
    by_key = call("source", "diff", artifact["key"]["digest"][:10], "--home", str(tool.home))
    assert by_key.code == 0, by_key.err
    assert '{"Channel", "patched"}' in by_key.out

    # A patched build of the version that runs is a question of --allow-same.
    again = tool.upgrade(server, "V1.1.0", *words)
    assert again.code == ExitCode.REFUSED
    assert "--allow-same" in again.err
