"""git's words, as recorded from git 2.47 against real servers (addresses shortened)."""

from __future__ import annotations

import pytest

from kwdb_build.errors import SourceError, SpaceError, UnreachableSourceError
from kwdb_build.source.diagnosis import explain, parse_progress, stalled

SAID = [
    ("fatal: unable to access 'https://h.invalid/x/': Could not resolve host: h.invalid", UnreachableSourceError, "DNS"),
    ("ssh: Could not resolve hostname h.invalid: Name or service not known", UnreachableSourceError, "DNS"),
    ("fatal: unable to look up h.invalid (port 9418) (Name or service not known)", UnreachableSourceError, "DNS"),
    (
        ("fatal: unable to access 'https://127.0.0.1:1/x/': Failed to connect to 127.0.0.1 port 1 after 0 ms: "
        "Couldn't connect to server"), UnreachableSourceError, "nobody answers",
    ),
    (
        "fatal: unable to connect to 127.0.0.1:\n127.0.0.1[0: 127.0.0.1]: errno=Connection refused",
        UnreachableSourceError, "nobody answers",
    ),
    (
        ("ssh: connect to host 127.0.0.1 port 22: Connection refused\nfatal: Could not read from remote repository.\n\n"
        "Please make sure you have the correct access rights\nand the repository exists."),
        UnreachableSourceError, "nobody answers",
    ),
    (
        "fatal: unable to access 'https://h/x/': server certificate verification failed. CAfile: none CRLfile: none",
        UnreachableSourceError, "TLS",
    ),
    (
        "fatal: unable to access 'https://h/x/': SSL certificate problem: unable to get local issuer certificate",
        UnreachableSourceError, "TLS",
    ),
    (
        "fatal: unable to access 'http://h/x/': Operation too slow. Less than 1000 bytes/sec transferred the last 2 s",
        UnreachableSourceError, "too slow",
    ),
    ("fatal: could not read Username for 'http://h': terminal prompts disabled", SourceError, "login"),
    ("fatal: Authentication failed for 'http://h/x/'", SourceError, "login"),
    ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", SourceError, "login"),
    ("Host key verification failed.\nfatal: Could not read from remote repository.", SourceError, "login"),
    ("fatal: unable to access 'http://h/x/': The requested URL returned error: 403", SourceError, "login"),
    ("fatal: unable to access 'http://h/x/': The requested URL returned error: 502", UnreachableSourceError, "broken"),
    ("fatal: repository 'http://h/x/' not found", SourceError, "no git repository"),
    ("fatal: '/x' does not appear to be a git repository", SourceError, "no git repository"),
    ("fatal: remote error: access denied or repository not exported: /x", SourceError, "no git repository"),
    (
        "fatal: detected dubious ownership in repository at '/x'\nTo add an exception for this directory, call:",
        SourceError, "another user",
    ),
    ("fatal: transport 'ext' not allowed", SourceError, "not allowed"),
    (
        ("remote: fatal: unable to read b5a5e417964867e2e16360f4a248a55afad429c4        \n"
        "error: git upload-pack: git-pack-objects died with error.\n"
        "remote: aborting due to possible repository corruption on the remote side.\nfatal: early EOF\n"
        "fatal: fetch-pack: invalid index-pack output"), SourceError, "lacks objects",
    ),
    ("fatal: remote error: upload-pack: not our ref " + "a" * 40, SourceError, "does not have this commit"),
    (
        ("error: RPC failed; curl 18 transfer closed with 871 bytes remaining to read\n"
        "fetch-pack: unexpected disconnect while reading sideband packet\nfatal: early EOF\n"
        "fatal: fetch-pack: invalid index-pack output"), UnreachableSourceError, "cut in the middle",
    ),
    (
        "fetch-pack: unexpected disconnect while reading sideband packet\nfatal: protocol error: bad pack header",
        UnreachableSourceError, "cut in the middle",
    ),
    ("fatal: write error: No space left on device\nfatal: early EOF", SpaceError, "became full"),
    ("fatal: sha1 file 'x/index.lock' write error. Out of diskspace", SpaceError, "became full"),
    (" ! [rejected]        master -> master  (shallow update not allowed)", SourceError, "shallow"),
    ("something new that git says in ten years", SourceError, "failed"),
]


@pytest.mark.parametrize(("said", "kind", "words"), SAID)
def test_what_git_says_is_understood(said: str, kind: type[Exception], words: str) -> None:
    error = explain(said, what="fetching", url="https://u:p@h/x")
    assert type(error) is kind
    assert words in error.message
    assert error.message.startswith("fetching https://***@h/x failed")
    assert said.splitlines()[0].strip() in error.context
    assert error.hint


def test_secrets_and_progress_stay_out_of_the_context() -> None:
    error = explain(
        "Receiving objects:  27% (18043/66823), 26.43 MiB | 52.86 MiB/s\nfatal: cannot read https://u:p@h/x",
        what="fetching",
    )
    assert error.context == "fatal: cannot read https://***@h/x"


def test_only_the_last_lines_are_shown() -> None:
    error = explain("\n".join(f"line {number}" for number in range(100)), what="x")
    assert error.context.splitlines()[-1] == "line 99"
    assert len(error.context.splitlines()) == 12


def test_stalled() -> None:
    error = stalled(what="fetching", url="https://u:p@h/x", seconds=120, log=None)
    assert error.message == "fetching https://***@h/x failed: nothing arrived for 120 s"


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("Receiving objects:  24% (16038/66823), 26.43 MiB | 52.86 MiB/s", ("receiving objects", 16038, 66823)),
        ("Receiving objects: 100% (6/6), 493 bytes | 493.00 KiB/s, done.", ("receiving objects", 6, 6)),
        ("remote: Compressing objects:   1% (2/174)        ", ("compressing objects", 2, 174)),
        ("Updating files:  50% (4363/8727)", ("updating files", 4363, 8727)),
        ("remote: Enumerating objects: 6, done.", None),
        ("From https://gitee.com/kwdb/kwdb", None),
        ("fatal: early EOF", None),
    ],
)
def test_progress(line: str, progress: tuple[str, int, int] | None) -> None:
    assert parse_progress(line) == progress
