"""Bundles for real: made out of git repositories, used where no network is, killed and starved on the way."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.source.inspect import content_digest
from tests.integration.tool import TOOLCHAIN, call, clean_environment
from tests.unit.source.sourcebox import HOST, Machine, Upstream, git

ROOT = Path(__file__).parents[2]



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
    file = create("--sign-list", str(key))
    shown = call("bundle", "show", str(file), "--bundle-key", f"{key}.pub", "--json").json["bundle"]
    assert shown["contents"]["source"]["version"]["text"] == "V1.1.0"
    assert shown["signed"]
    assert call("bundle", "verify", str(file)).code == 0
    assert call("fetch", "--bundle", str(file), "--home", str(tmp_path / "a"), "--bundle-key", f"{key}.pub").code == 0
    cached = call("cache", "list", "--home", str(tmp_path / "a"), "--json").json
    assert "bundle" in {entry["kind"] for entry in cached["cache"]}
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
