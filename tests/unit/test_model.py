"""Versions as KWDB writes them, keys, and values that survive JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.files import load_json, write_json
from kwdb_build.model import (
    Address,
    BuildKey,
    Deployment,
    SourceTree,
    StartCommand,
    Store,
    Submodule,
    Version,
)


@pytest.mark.parametrize(
    ("text", "release", "pre", "ahead", "dirty"),
    [
        ("V3.2.1", (3, 2, 1), "", 0, False),
        ("V2.0.3.2_RC3-3-gfe5eeb853e-dirty", (2, 0, 3, 2), "RC3", 3, True),
        ("V3.1.0-12-g06c16a1d5c", (3, 1, 0), "", 12, False),
        ("v1.0.0", (1, 0, 0), "", 0, False),
    ],
)
def test_version_texts(text: str, release: tuple[int, ...], pre: str, ahead: int, dirty: bool) -> None:
    version = Version.parse(text)
    assert (version.release, version.pre, version.ahead, version.dirty) == (release, pre, ahead, dirty)
    assert str(version) == text


@pytest.mark.parametrize("text", ["", "3", "V3", "V3.1.0_old", "V3.1.0_BEFORE_3.0.1MERGE", "latest", "V3.1.0-x", "-V3.1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="not a KWDB version"):
        Version.parse(text)


def test_order_of_versions() -> None:
    texts = ["V2.0.3.2_RC3", "V2.0.3.2", "V2.2.2", "V3.0.0", "V3.0.1", "V3.1.0", "V3.1.0-1-gabcdef", "V3.2.0", "V3.10.0"]
    versions = [Version.parse(text) for text in texts]
    assert sorted(versions, key=lambda v: v._key()) == versions
    for older, newer in zip(versions, versions[1:], strict=False):
        assert older < newer
        assert newer > older
        assert not newer < older
    assert Version.parse("V3.1").same_release(Version.parse("V3.1.0-3-gabcdef-dirty"))
    assert not Version.parse("V3.1.0_RC1").same_release(Version.parse("V3.1.0"))


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_a_key_depends_on_content_and_not_on_order(inputs: dict[str, str | int]) -> None:
    turned = dict(reversed(list(inputs.items())))
    assert BuildKey.of(inputs).digest == BuildKey.of(turned).digest
    assert BuildKey.of(inputs | {"\x00more": 1}).digest != BuildKey.of(inputs).digest


def test_values_survive_their_file(tmp_path: Path) -> None:
    start = StartCommand(
        argv=("./kwbase", "start-single-node", "--store=a b", "--background"), background=True, cwd=Path("/opt/kw/bin"),
        executable=Path("/opt/kw/bin/kwbase"), environ={"LD_LIBRARY_PATH": "../lib", "ÜMLAUT": "ß\n'x'"},
        dropped={"NOTIFY_SOCKET": "gone"}, uid=7, gid=8, groups=(8, 9), limits={"nofile": (1024, -1)}, oom_score_adj=0,
        nice=0, stdout="/dev/null", stderr="pipe:[12]",
    )
    deployment = Deployment(
        pid=12, started_at=1.5, start=start, stores=(Store(path=Path("/data/a b"), targets=(Path("/mnt/x"),)),),
        sql=Address(host="::1", port=26257), http=None, secure=False, certs_dir=None,
        libraries={"libcommon.so": Path("/opt/kw/lib/libcommon.so")}, version=Version.parse("V3.1.0"),
    )
    write_json(tmp_path / "deployment.json", deployment)
    assert load_json(Deployment, tmp_path / "deployment.json") == deployment
    assert "ß" not in repr(deployment), "environment values never appear in a repr that could be logged"


def test_gopath_stands_before_src() -> None:
    tree = SourceTree(
        path=Path("/x/y/src/gitee.com/kwbasedb"), url="u", ref="V1", commit="c", version=Version.parse("V1.0"),
        commit_time=0, submodules=(Submodule(path="kwbase/vendor", url="u", commit="d"),),
    )
    assert tree.gopath == Path("/x/y")


@pytest.mark.parametrize(("seen", "given"), [
    (0o027, 0o022), (0o077, 0o077), (0o007, 0o002), (0o037, 0o033), (0o022, 0o022), (0o000, 0o000), (-1, 0o022),
])
def test_the_umask_to_start_with_gives_the_servers_own_again(seen: int, given: int) -> None:
    start = StartCommand(
        argv=("k",), background=False, cwd=Path("/"), executable=Path("/k"), environ={}, dropped={}, uid=0, gid=0,
        groups=(), limits={}, oom_score_adj=0, nice=0, stdout="", stderr="", umask=seen,
    )
    assert start.launcher_umask == given
    if seen > 0 and seen & 0o007 == 0o007:
        assert given | 0o007 == seen
