"""Rows about a captured command: each trouble is named with its way out, and a sound command has none."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.errors import RefusedError, UsageError
from kwdb_build.model import Address, CheckResult, Deployment, StartCommand, Store, Verdict, Version
from kwdb_build.server import startflags, validate

KNOWN = frozenset({
    "insecure", "store", "listen-addr", "http-addr", "brpc-addr", "use-raft-store", "pid-file", "temp-dir", "locality",
    "upgrade-complete", "socket-dir", "cache",
})


def server(tmp_path: Path, *flags: str, command: str = "start-single-node", dropped: dict[str, str] | None = None,
           secure: bool = False) -> Deployment:
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    start = StartCommand(
        argv=("./kwbase", command, f"--store={store}", "--listen-addr=:26300", "--http-addr=:8300", *flags),
        background=False, cwd=tmp_path, executable=Path("/bin/sh"), environ={}, dropped=dropped or {}, uid=0, gid=0,
        groups=(), limits={}, oom_score_adj=0, nice=0, stdout="", stderr="",
    )
    return Deployment(
        pid=os.getpid(), started_at=1.0, start=start, stores=(Store(path=store),),
        sql=Address(host="127.0.0.1", port=26300), http=Address(host="127.0.0.1", port=8300), secure=secure,
        certs_dir=tmp_path / "certs" if secure else None, libraries={}, version=Version.parse("V3.1.0"),
    )


def bad(deployment: Deployment, **options: object) -> dict[str, CheckResult]:
    options.setdefault("known", KNOWN)
    rows = validate.check(deployment, running=False, **options)  # type: ignore[arg-type]
    return {row.name: row for row in rows if row.verdict is not Verdict.OK}


def test_a_sound_command_has_nothing_to_say(tmp_path: Path) -> None:
    deployment = server(tmp_path, "--insecure", "--join=", "--locality=region=a", "-s", str(tmp_path / "store"))
    assert bad(deployment) == {}


def test_a_flag_that_is_gone_is_named_with_its_near_successor(tmp_path: Path) -> None:
    rows = bad(server(tmp_path, "--cach=1GiB"), known_before={"store", "cach", "insecure"})
    assert rows["flag --cach"].verdict is Verdict.FAIL
    assert "--drop-flag cach --add-flag --cache=…" in rows["flag --cach"].fix
    with pytest.raises(RefusedError) as caught:
        validate.require(rows.values())
    assert "flag --cach" in caught.value.message
    assert "nothing was changed" in caught.value.hint


def test_a_flag_that_is_needed_now(tmp_path: Path) -> None:
    deployment = server(tmp_path, "--insecure", command="start")
    assert "HOST:27257" in bad(deployment, known_before={"store"})["flag --brpc-addr"].fix
    assert bad(deployment, known_before=KNOWN) == {}  # it did without so far


@pytest.mark.parametrize(("flag", "name"), [
    ("--pid-file=pids/p", "--pid-file"), ("--temp-dir=/no/such/place", "--temp-dir"),
    ("--socket-dir=/tmp/" + "x" * 100, "--socket-dir"),
])
def test_paths_of_flags(tmp_path: Path, flag: str, name: str) -> None:
    assert bad(server(tmp_path, flag))[name].verdict is Verdict.FAIL


def test_a_store_and_certificates_that_are_gone(tmp_path: Path) -> None:
    deployment = server(tmp_path, secure=True)
    (tmp_path / "store").rmdir()
    rows = bad(deployment)
    assert rows["store"].verdict is rows["certificates"].verdict is Verdict.FAIL


def test_a_raft_store_and_its_flag_agree(tmp_path: Path) -> None:
    assert bad(server(tmp_path, "--use-raft-store"))["--use-raft-store"].verdict is Verdict.WARN
    (tmp_path / "store/tsdb/raftlog").mkdir(parents=True)
    assert bad(server(tmp_path, "--use-raft-store")) == {}
    assert "--add-flag --use-raft-store" in bad(server(tmp_path))["--use-raft-store"].fix


def test_other_stores_and_ports_than_the_running_servers(tmp_path: Path) -> None:
    deployment = server(tmp_path)
    other = dataclasses.replace(deployment, stores=(Store(path=Path("/")),), sql=Address(host="::1", port=26301))
    assert {"stores", "SQL address"} <= set(bad(other))
    chance = dataclasses.replace(
        deployment, start=dataclasses.replace(deployment.start, argv=("k", "start", f"--store={tmp_path / 'store'}",
                                                                      "--listen-addr=:0", "--http-addr=:8300")),
    )
    assert bad(chance)["SQL address"].verdict is Verdict.WARN


def test_a_running_server_that_has_not_opened_the_store_is_another_one(tmp_path: Path) -> None:
    rows = [row for row in validate.check(server(tmp_path), known=KNOWN) if row.verdict is Verdict.FAIL]
    assert [row.name for row in rows] == ["store"]
    assert "has not opened" in rows[0].found


def test_words_that_do_not_stop_an_upgrade(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        rows = bad(server(
            tmp_path, f"--join=127.0.0.1:{port}", "--upgrade-complete", dropped={"KW_FORCE_RECOVER": "why"}
        ))
    assert set(rows) == {"--join", "flag --upgrade-complete", "KW_FORCE_RECOVER"}
    assert {row.verdict for row in rows.values()} == {Verdict.WARN}
    assert str(port) in rows["--join"].found


@pytest.mark.parametrize(("argv", "drop", "add", "left"), [
    (("k", "start", "--a=1", "--b", "2", "x"), ["a"], [], ("k", "start", "--b", "2", "x")),
    (("k", "start", "--a=1", "--b", "2", "x"), ["--b"], ["--c=3"], ("k", "start", "--a=1", "x", "--c=3")),
    (("k", "start", "-s", "p", "-sq", "--store=r", "--insecure"), ["store"], [], ("k", "start", "--insecure")),
    (("k", "start", "--insecure", "x", "--", "--a"), ["insecure"], ["--b"], ("k", "start", "x", "--b", "--", "--a")),
    (("k", "start", "--a"), ["a"], [], ("k", "start")),
])
def test_flags_are_taken_out_and_put_in(
    argv: tuple[str, ...], drop: list[str], add: list[str], left: tuple[str, ...]
) -> None:
    assert startflags.edited(argv, drop=drop, add=add) == left


@pytest.mark.parametrize(("drop", "add"), [(["none"], []), ([], ["word"]), ([], ["--"])])
def test_what_cannot_be_taken_out_or_put_in(drop: list[str], add: list[str]) -> None:
    with pytest.raises(UsageError):
        startflags.edited(("k", "start", "--a=1"), drop=drop, add=add)


_NAME = st.sampled_from(["store", "listen-addr", "locality", "insecure", "background", "cache"])
_VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@st.composite
def words(draw: st.DrawFn) -> list[str]:
    """Flags in any of their spellings."""
    found: list[str] = []
    for name in draw(st.lists(_NAME, max_size=5)):
        value = draw(_VALUE)
        valueless = name in {"insecure", "background"}
        found += draw(st.sampled_from([[f"--{name}"]] if valueless else [[f"--{name}={value}"], [f"--{name}", value]]))
    return found


@given(given_words=words(), name=_NAME)
def test_taking_a_flag_out_leaves_all_others_as_they_were(given_words: list[str], name: str) -> None:
    argv = ("kwbase", "start", *given_words)
    command, before = startflags.split(argv)
    if name not in before:
        return
    after = startflags.split(startflags.edited(argv, drop=[name]))
    assert after == (command, {key: values for key, values in before.items() if key != name})


@given(given_words=words())
def test_background_is_put_back_and_taken_off_again(given_words: list[str]) -> None:
    argv = tuple(word for word in ("kwbase", "start", *given_words) if word != "--background")
    assert startflags.without_background(startflags.with_background(argv)) == argv
    assert startflags.split(startflags.with_background(argv))[1]["background"][-1] == "true" or "--" in argv
