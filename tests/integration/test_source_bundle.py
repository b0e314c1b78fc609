"""Bundles for real: made out of git repositories, used where no network is, killed and starved on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact
from kwdb_build.source.inspect import content_digest
from tests.integration.tool import TOOLCHAIN, Answer, Tool, clean_environment, share_builds
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories
from tests.unit.source.sourcebox import HOST, Machine, Upstream, git

ROOT = Path(__file__).parents[2]


def call(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> Answer:
    """The command line, perhaps below another program."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "kwdb_build", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, cwd=ROOT, env=clean_environment(environment), timeout=1000,
    )
    return Answer(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def no_network() -> tuple[str, ...]:
    """A prefix that takes the network away, loopback included."""
    prefix = ("unshare", "--net")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
        return prefix
    prefix = ("unshare", "--user", "--map-current-user", "--net")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
        return prefix
    if os.environ.get("CI"):
        pytest.fail("CI needs network namespaces")
    pytest.skip("needs network namespaces (root, or unprivileged user namespaces)")


@pytest.fixture
def create(upstream: Upstream, tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle of the small repositories, without a build image."""

    def make(*words: str, ref: str = "V1.1.0", name: str = "made") -> Path:
        file = tmp_path / f"{name}.kwdb-bundle"
        answer = call(
            "bundle", "create", "--ref", ref, "-o", str(file), "--no-image", "--toolchain", str(TOOLCHAIN), "--home",
            str(tmp_path / "origin"), "--url", f"{HOST}kwdb.git", "--redirect", f"{HOST}={upstream.mirror}", *words,
        )
        assert answer.code == 0, answer.err
        return file

    return make


FIX = "--- a/kwbase/main.go\n+++ b/kwbase/main.go\n@@ -1 +1 @@\n-package main // V1.1.0\n+package main // fixed\n"
VENDOR = "--- a/file.txt\n+++ b/file.txt\n@@ -1 +1 @@\n-kw-vendor V1.1.0\n+kw-vendor patched\n"


def test_the_same_source_without_network(
    create: Callable[..., Path], machine: Machine, tmp_path: Path, no_network: tuple[str, ...]
) -> None:
    (tmp_path / "fix.patch").write_text(FIX)
    (tmp_path / "vendor.patch").write_text(VENDOR)
    file = create("--patch", str(tmp_path / "fix.patch"), "--patch", f"kwbase/vendor={tmp_path / 'vendor.patch'}")
    away = tmp_path / "away"
    answer = call("fetch", "--bundle", str(file), "--offline", "--home", str(away), "--json", prefix=no_network)
    assert answer.code == 0, answer.err
    tree = answer.json["source"]
    path = Path(tree["path"])
    assert (path / "kwbase/main.go").read_text() == "package main // fixed\n"
    assert (path / "kwbase/vendor/file.txt").read_text() == "kw-vendor patched\n"
    assert git(path, "rev-parse", "HEAD") == machine.upstream.commits["V1.1.0"], "what the build stamps"
    assert {module["path"]: module["commit"] for module in tree["submodules"]} == machine.upstream.pins["V1.1.0"]
    git(path, "submodule", "update", "--init", "--recursive")  # KWDB's Makefile does; it must want nothing
    plain = machine.fetch("V1.1.0")
    bundled = next((away / "source").glob("bundle-*/src")) / "gitee.com/kwbasedb"
    assert content_digest(bundled) == content_digest(plain.path)
    shown = call("source", "diff", "--bundle", str(file), "--home", str(away), prefix=no_network)
    assert "+package main // fixed" in shown.out
    other = call("fetch", "V1.0.0", "--bundle", str(file), "--home", str(away))
    assert other.code == ExitCode.USAGE
    assert "does not hold V1.0.0" in other.err


def test_archives_and_checkouts_can_be_bundled(
    create: Callable[..., Path], upstream: Upstream, tmp_path: Path, no_network: tuple[str, ...]
) -> None:
    checkout = tmp_path / "dev" / "KWDB-V1.1.0"
    checkout.parent.mkdir()
    git(checkout.parent, "-c", f"url.{upstream.mirror}.insteadOf={HOST}", "-c", "protocol.file.allow=always", "clone",
        "--quiet", "--recurse-submodules", "--branch", "V1.1.0", f"{HOST}kwdb.git", checkout.name)
    git(checkout / "kwbase/vendor", "checkout", "--quiet", "HEAD~1")
    plain = tmp_path / "plain" / checkout.name
    shutil.copytree(checkout, plain, ignore=shutil.ignore_patterns(".git"))
    for number, path in enumerate((checkout, plain)):
        file = create(ref=str(path), name=str(number))
        here = call("fetch", str(path), "--home", str(tmp_path / "origin"), "--json").json["source"]
        answer = call("fetch", "--bundle", str(file), "--offline", "--home", str(tmp_path / "away"), "--json",
                      prefix=no_network)
        assert answer.code == 0, answer.err
        there = answer.json["source"]
        same = ("content", "commit", "version", "commit_time", "submodules")
        assert {name: there[name] for name in same} == {name: here[name] for name in same}
    (checkout / "Makefile").write_text("all: changed\n")
    refused = call("bundle", "create", str(checkout), "--dirty", "--no-image", "-o", str(tmp_path / "dirty"),
                   "--toolchain", str(TOOLCHAIN), "--home", str(tmp_path / "origin"))
    assert refused.code == ExitCode.SOURCE
    assert "give them as a --patch" in refused.err
    assert not (tmp_path / "dirty").exists()


def test_show_verify_and_signatures(create: Callable[..., Path], tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    file = create("--sign", str(key))
    shown = call("bundle", "show", str(file), "--bundle-key", f"{key}.pub", "--json").json["bundle"]
    assert shown["contents"]["source"]["version"]["text"] == "V1.1.0"
    assert shown["signed"]
    assert call("bundle", "verify", str(file)).code == 0
    assert call("fetch", "--bundle", str(file), "--home", str(tmp_path / "a"), "--bundle-key", f"{key}.pub").code == 0
    unsigned = create(name="unsigned")
    refused = call("fetch", "--bundle", str(unsigned), "--home", str(tmp_path / "b"), KWDB_BUILD_BUNDLE_KEY=f"{key}.pub")
    assert refused.code == ExitCode.BUNDLE
    assert "not signed" in refused.err
    assert not list((tmp_path / "b").glob("source/*"))


def test_a_patch_that_does_not_apply_makes_no_bundle(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "bad.patch").write_text(FIX.replace("V1.1.0", "V0.0.0"))
    answer = call(
        "bundle", "create", "--ref", "V1.1.0", "-o", str(tmp_path / "out"), "--no-image", "--toolchain", str(TOOLCHAIN),
        "--home", str(tmp_path / "origin"), "--url", f"{HOST}kwdb.git", "--redirect", f"{HOST}={upstream.mirror}",
        "--patch", str(tmp_path / "bad.patch"),
    )
    assert answer.code == ExitCode.PATCH
    assert not (tmp_path / "out").exists()


_SLOW = """
import sys, time
from kwdb_build import console
from kwdb_build.__main__ import main
moment = sys.argv.pop(1)
update = console.Console.update
def slow(self, text, **more):
    update(self, text, **more)
    if text.startswith(moment):
        print("there", flush=True)
        time.sleep(600)
console.Console.update = slow
sys.exit(main())
"""


def kill_at(moment: str, *words: str) -> None:
    """Run a verb until it says what it does now, then SIGKILL."""
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW, moment, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=clean_environment({}),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n", child.communicate()[1]
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.mark.parametrize("moment", ["checking source/0.pack", "unpacking kwbase/vendor", "applying"])
def test_kill_9_while_a_bundle_is_used(create: Callable[..., Path], tmp_path: Path, moment: str) -> None:
    (tmp_path / "fix.patch").write_text(FIX)
    file = create("--patch", str(tmp_path / "fix.patch"))
    words = ("fetch", "--bundle", str(file), "--offline", "--home", str(tmp_path / "away"))
    kill_at(moment, *words)
    answer = call(*words, "--json")
    assert answer.code == 0, answer.err
    assert (Path(answer.json["source"]["path"]) / "kwbase/main.go").read_text() == "package main // fixed\n"
    left = [path.name for path in (tmp_path / "away/bundles").iterdir() if path.name != ".gate"]
    assert len(left) == 1, "what the killed one left is gone"


@pytest.mark.parametrize("moment", ["packing kwbase/vendor", "packing source/0.pack"])
def test_kill_9_while_a_bundle_is_made(create: Callable[..., Path], upstream: Upstream, tmp_path: Path, moment: str) -> None:
    file = create()
    before = file.read_bytes()
    kill_at(
        moment, "bundle", "create", "--ref", "V1.0.0", "-o", str(file), "--no-image", "--toolchain", str(TOOLCHAIN),
        "--home", str(tmp_path / "origin"), "--url", f"{HOST}kwdb.git", "--redirect", f"{HOST}={upstream.mirror}",
    )
    assert file.read_bytes() == before, "the old file is whole"
    create(name="after")
    left = [path.name for path in (tmp_path / "origin/bundles").iterdir() if path.name != ".gate"]
    assert left == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(create: Callable[..., Path], small_disk: Path) -> None:
    file = create()
    (small_disk / "ballast").write_bytes(bytes((70 << 20) - (1 << 20)))
    answer = call("fetch", "--bundle", str(file), "--offline", "--home", str(small_disk / "home"))
    assert answer.code == ExitCode.SPACE, answer.err
    assert not list((small_disk / "home").glob("bundles/[0-9a-f]*"))
    (small_disk / "ballast").unlink()
    out = small_disk / "copy.kwdb-bundle"
    shutil.copyfile(file, out)
    assert call("bundle", "verify", str(out)).code == 0


# ------------------------------------------------- a whole build, a whole upgrade


@pytest.fixture
def channel_patch(repositories: MiniRepositories, tmp_path: Path) -> Path:
    """The patch that the branch `patched` has on top of V1.1.0, as a developer would export it."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--no-local", "--branch", "patched", f"file://{repositories.main}", str(clone))
    git(clone, "format-patch", "--quiet", "-1", "--output-directory", str(tmp_path / "patches"))
    return tmp_path / "patches"


@pytest.mark.engine
@pytest.mark.timeout(1200)
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
