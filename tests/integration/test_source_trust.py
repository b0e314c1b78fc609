"""Who signed it, what may run, and caches that were damaged: nothing is taken on trust."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import SourceError, SubmoduleError, UsageError
from kwdb_build.source.signature import SignatureRefusedError, SignatureRule
from tests.unit.source.sourcebox import Machine, Repository, Upstream, git

if TYPE_CHECKING:
    from collections.abc import Iterator

# --------------------------------------------------------------------------- signatures


@dataclass
class Signer:
    """A real key, and how git signs with it."""

    settings: tuple[str, ...]
    rule: dict[str, Path]


def ssh_signer(place: Path, name: str) -> Signer:
    place.mkdir(exist_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(place / name)], check=True,
        stdin=subprocess.DEVNULL,
    )
    allowed = place / f"{name}.allowed"
    allowed.write_text(f"dev@example.invalid {(place / name).with_suffix('.pub').read_text()}")
    settings = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={place / name}.pub")
    return Signer(settings=settings, rule={"allowed_signers": allowed})


@pytest.fixture
def gpg_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Short: gpg's agent listens on a socket in it.
    home = Path(shutil.os.path.realpath(subprocess.check_output(["mktemp", "-d"], text=True).strip()))
    monkeypatch.setenv("GNUPGHOME", str(home))
    yield home
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    shutil.rmtree(home, ignore_errors=True)


def gpg_signer(home: Path, place: Path, name: str) -> Signer:
    place.mkdir(exist_ok=True)
    subprocess.run(
        ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "",
         "--quick-generate-key", f"{name} <{name}@example.invalid>", "ed25519", "sign", "1y"],
        check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )
    ring = place / f"{name}.asc"
    ring.write_bytes(subprocess.check_output(["gpg", "--homedir", str(home), "--batch", "--armor", "--export", name]))
    settings = ("-c", "gpg.format=openpgp", "-c", f"user.signingKey={name}@example.invalid")
    return Signer(settings=settings, rule={"keyring": ring})


def sign_tag(repository: Repository, signer: Signer, tag: str) -> None:
    git(repository.work, *signer.settings, "tag", "-s", "-m", tag, tag)
    git(repository.work, "push", "--quiet", "--force", "--tags", "origin")


def require(machine: Machine, ref: str, what: str, rule: dict[str, Path]) -> str:
    return machine.fetch(ref, signature=SignatureRule(require=what, **rule)).signature


@pytest.mark.parametrize("kind", ["ssh", "gpg"])
def test_signed_tags(
    machine: Machine, upstream: Upstream, tmp_path: Path, gpg_home: Path, kind: str
) -> None:
    keys = tmp_path / "keys"
    make = (lambda name: ssh_signer(keys, name)) if kind == "ssh" else lambda name: gpg_signer(gpg_home, keys, name)
    ours, stranger = make("ours"), make("stranger")
    sign_tag(upstream.main, ours, "V1.2.0")
    assert require(machine, "V1.2.0", "tag", ours.rule).startswith("tag V1.2.0: ")
    assert require(machine, "V1.2.0", "any", ours.rule)
    assert require(machine, "latest", "tag", ours.rule)
    assert machine.fetch("V1.2.0").signature == ""
    for rule in (stranger.rule, {"allowed_signers": Path("/dev/null").resolve()}):
        with pytest.raises((SignatureRefusedError, UsageError)):
            require(machine, "V1.2.0", "tag", rule)
    for ref in ("V1.1.0", "master", upstream.commits["V1.0.0"]):
        with pytest.raises(SignatureRefusedError, match="not signed by an allowed signer"):
            require(machine, ref, "tag", ours.rule)


@pytest.mark.parametrize("kind", ["ssh", "gpg"])
def test_signed_commits(machine: Machine, upstream: Upstream, tmp_path: Path, gpg_home: Path, kind: str) -> None:
    keys = tmp_path / "keys"
    ours = ssh_signer(keys, "ours") if kind == "ssh" else gpg_signer(gpg_home, keys, "ours")
    git(upstream.main.work, *ours.settings, "commit", "--quiet", "--allow-empty", "-S", "-m", "signed")
    upstream.push()
    assert require(machine, "master", "commit", ours.rule).startswith("commit ")
    assert require(machine, "master", "any", ours.rule)
    with pytest.raises(SignatureRefusedError):
        require(machine, "V1.1.0", "commit", ours.rule)
    with pytest.raises(SignatureRefusedError):
        require(machine, "master", "tag", ours.rule)


def test_a_signed_tag_under_another_name(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    """A genuine signature of an old release, shown for a new one."""
    ours = ssh_signer(tmp_path / "keys", "ours")
    sign_tag(upstream.main, ours, "V1.2.0")
    signed = git(upstream.main.work, "rev-parse", "refs/tags/V1.2.0")
    git(upstream.main.bare, "update-ref", "refs/tags/V1.3.0", signed)
    with pytest.raises(SignatureRefusedError) as caught:
        require(machine, "V1.3.0", "tag", ours.rule)
    assert "signed as 'V1.2.0'" in caught.value.context


def test_signers_that_are_not_there(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file with signers"):
        require(machine, "V1.0.0", "tag", {"keyring": tmp_path / "none"})


# --------------------------------------------------------------------------- what must not run


def test_no_filter_of_this_machine_runs_for_a_tree_that_names_it(
    machine: Machine, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, settings = tmp_path / "filter-ran", tmp_path / "gitconfig"
    settings.write_text(
        f'[filter "mine"]\n\tsmudge = touch {sign}; cat\n\tclean = touch {sign}; cat\n\tprocess = touch {sign}\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    upstream.main.commit("asks for a filter", {".gitattributes": "* filter=mine\n", "a.txt": "as it is\n"})
    part = upstream.parts["kw-vendor"].commit("asks, too", {".gitattributes": "* filter=mine\n"})
    upstream.main.commit("pins it", {}, {"kwbase/vendor": part})
    upstream.push()
    for _ in range(2):
        tree = machine.fetch("master")
        assert (tree.path / "a.txt").read_text() == "as it is\n"
        assert not sign.exists()


@pytest.mark.parametrize(
    ("name", "path"), [("../../evil", "kwbase/vendor"), ("kwbase/vendor", "../evil"), ("x", ".git/hooks"), ("x/.GIT", "a")]
)
def test_submodules_that_would_leave_the_tree(name: str, path: str) -> None:
    from kwdb_build.source.submodules import Pin, require_safe_place

    with pytest.raises(SubmoduleError, match="unsafe"):
        require_safe_place(Pin(path=path, name=name, url="https://h/x", commit="a" * 40), path)


def test_two_submodules_of_one_name(machine: Machine, upstream: Upstream) -> None:
    text = upstream.gitmodules().replace('[submodule "kwbase/c-deps"]', '[submodule "kwbase/vendor/modules/x"]')
    upstream.release("V1.2.0", gitmodules=text)
    upstream.push()
    assert len(machine.fetch("V1.2.0").submodules) == 3


# --------------------------------------------------------------------------- damaged caches


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("suffix", "spoil"), [(".pack", cut), (".pack", flip), (".idx", flip), (".pack", Path.unlink)])
def test_a_damaged_cache_is_set_aside_and_made_again(machine: Machine, suffix: str, spoil: object) -> None:
    tree = machine.fetch("V1.0.0")
    before = machine.caches
    for cache in before:
        for path in cache.glob(f"objects/pack/*{suffix}"):
            # A pack has hard links in the checkouts: what is spoilt here is a copy.
            copied = path.with_name("copy")
            shutil.copyfile(path, copied)
            copied.rename(path)
            assert callable(spoil)
            spoil(path)
    shutil.rmtree(tree.gopath)
    assert machine.fetch("V1.0.0") == tree
    assert any("damaged" in note and "set aside" in note for note in machine.said.notes)
    assert machine.caches == before
    aside = sorted((machine.home / "cache" / "git").glob("*.aside-*"))
    assert aside
    for cache in machine.caches:
        git(cache, "fsck", "--no-dangling")


def test_a_damaged_cache_is_not_used_offline(machine: Machine) -> None:
    tree = machine.fetch("V1.0.0")
    for path in machine.caches[0].glob("objects/pack/*.pack"):
        copied = path.with_name("copy")
        shutil.copyfile(path, copied)
        copied.rename(path)
        flip(path)
    shutil.rmtree(tree.gopath)
    with pytest.raises(SourceError, match="offline"):
        machine.fetch("V1.0.0", offline=True)
    assert not os.path.lexists(tree.gopath)
    assert list((machine.home / "cache" / "git").glob("*.aside-*"))
    assert machine.fetch("V1.0.0") == tree
