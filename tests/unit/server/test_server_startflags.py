"""The start command read as kwbase reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.errors import UsageError
from kwdb_build.server import startflags
from kwdb_build.server.startflags import HostPort, StoreSpec

ENVIRON = {"HOME": "/home/kw"}


def parse(*words: str) -> startflags.StartFlags:
    return startflags.parse(("./kwbase", *words), cwd="/opt/kw db/bin", environ=ENVIRON)


def test_defaults() -> None:
    flags = parse("start-single-node")
    assert flags.command == "start-single-node"
    assert flags.stores == (StoreSpec(path="/opt/kw db/bin/kwbase-data"),)
    assert flags.ts_stores == ()
    assert flags.listen == flags.sql == HostPort(host="", port=26257)
    assert flags.http == HostPort(host="", port=8080)
    assert not flags.insecure
    assert flags.certs_dir == "/home/kw/.kwbase-certs"
    assert flags.log_dir == "/opt/kw db/bin/kwbase-data/logs"
    assert not flags.background


def test_a_real_command() -> None:
    flags = parse(
        "start-single-node", "--insecure", "--listen-addr=127.0.0.1:36257", "--http-addr=127.0.0.1:38080",
        "--store=/data/ä ö", "--pid-file=kw.pid", "--background",
    )
    assert flags.insecure
    assert flags.background
    assert str(flags.sql) == "127.0.0.1:36257"
    assert str(flags.http) == "127.0.0.1:38080"
    assert startflags.store_paths(flags) == (Path("/data/ä ö"),)
    assert flags.pid_file == "/opt/kw db/bin/kw.pid"


@pytest.mark.parametrize("words", [
    ("start", "--store", "d1", "-s", "d2", "--join=a:1,b:2", "-j", "c"),
    ("start", "-s=d1", "-sd2", "--join", "a:1,b:2", "-j=c"),
    ("--store=d1", "start", "--join=a:1,b:2", "--store=path=d2", "--join=c"),
])
def test_spellings_of_the_same(words: tuple[str, ...]) -> None:
    flags = parse(*words)
    assert [store.path for store in flags.stores] == ["/opt/kw db/bin/d1", "/opt/kw db/bin/d2"]
    assert flags.values["join"] == ("a:1,b:2", "c")
    assert flags.command == "start"


def test_a_flag_without_value_leaves_the_next_word_alone() -> None:
    flags = parse("--insecure", "start-single-replica", "--logtostderr", "--store", "d")
    assert flags.command == "start-single-replica"
    assert flags.insecure
    assert flags.values["logtostderr"] == ("true",)


@pytest.mark.parametrize(("value", "expected"), [
    ("--insecure=true", True), ("--insecure=1", True), ("--insecure=T", True), ("--insecure=false", False),
    ("--insecure=0", False),
])
def test_boolean_values(value: str, expected: bool) -> None:
    assert parse("start", value).insecure is expected


def test_the_last_one_counts_and_nothing_after_two_dashes() -> None:
    assert parse("start", "--listen-addr=:1", "--listen-addr=:2", "--", "--listen-addr=:3").listen.port == 2


@pytest.mark.parametrize(("text", "host", "port"), [
    (":26300", "", 26300), ("db1", "db1", 26257), ("db1:", "db1", 26257), ("10.0.0.1:5", "10.0.0.1", 5),
    ("[::1]:7", "::1", 7), ("[fe80::1%eth0]", "fe80::1%eth0", 26257), ("", "", 26257), ("db.example:0", "db.example", 0),
])
def test_addresses(text: str, host: str, port: int) -> None:
    found = startflags.parse_host_port(text, 26257)
    assert (found.host, found.port) == (host, port)
    assert startflags.parse_host_port(str(found), 1) == found


@pytest.mark.parametrize("text", ["::1", "a:b:c", "host:http", "host:99999", "[::1", "host:²"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        startflags.parse_host_port(text, 26257)


def test_sql_and_http_inherit_the_listen_host() -> None:
    flags = parse("start", "--listen-addr=10.1.1.1:26000", "--http-addr=:8081")
    assert str(flags.sql) == "10.1.1.1:26000"
    assert str(flags.http) == "10.1.1.1:8081"
    split = parse("start", "--listen-addr=10.1.1.1:26000", "--sql-addr=[::1]:26001")
    assert str(split.sql) == "[::1]:26001"
    assert str(split.listen) == "10.1.1.1:26000"
    assert str(parse("start", "--listen-addr=10.1.1.1", "--unencrypted-localhost-http").http) == "localhost:8080"


def test_old_hidden_spellings() -> None:
    flags = parse("start", "--host=10.0.0.9", "--port", "26999", "--http-port=8999", "--http-host=10.0.0.8")
    assert str(flags.listen) == "10.0.0.9:26999"
    assert str(flags.http) == "10.0.0.8:8999"


@pytest.mark.parametrize(("value", "expected"), [
    ("data", StoreSpec(path="/w/data")),
    ("/d/./x/../y", StoreSpec(path="/d/y")),
    ("path=/d,attrs=ssd:fast,size=20%", StoreSpec(path="/d", attributes=("ssd", "fast"), size="20%")),
    ("PATH=/d", StoreSpec(path="/d")),
    ("path=/a=b", StoreSpec(path="/a=b")),
    ("type=mem,size=1GiB", StoreSpec(path="", in_memory=True, size="1GiB")),
])
def test_stores(value: str, expected: StoreSpec) -> None:
    assert startflags.parse_store(value, cwd="/w") == expected


@pytest.mark.parametrize("value", ["", "path=", "size=1GiB", "a,b", "path=/d,path=/e", "~/d", "type=mem,path=/d", "x=1"])
def test_no_stores(value: str) -> None:
    with pytest.raises(UsageError):
        startflags.parse_store(value, cwd="/w")


def test_log_directory() -> None:
    assert parse("start", "--log-dir=").log_dir == ""
    assert parse("start", "--log-dir=l").log_dir == "/opt/kw db/bin/l"
    assert parse("start", "--store=type=mem,size=1GiB").log_dir == ""


def test_certificates_expand_the_servers_own_variables() -> None:
    assert parse("start", "--certs-dir=$HOME/${NOT_SET}c").certs_dir == "/home/kw/c"


def test_what_is_no_start_command() -> None:
    for words in ((), ("version",), ("node", "status"), ("sql", "--insecure")):
        assert not startflags.is_start_command(("kwbase", *words))
        with pytest.raises(UsageError):
            parse(*words)
    with pytest.raises(UsageError) as caught:
        parse("sql", "--password=hunter2")
    assert "hunter2" not in str(caught.value.message + caught.value.context)


_WORD = st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
_FLAGS = st.lists(
    st.one_of(
        st.builds("--locality={}".format, _WORD),
        st.builds("--store=/{}".format, st.from_regex(r"[a-z äß]{1,8}", fullmatch=True)),
        st.sampled_from(["--insecure", "--cache=25%", "--logtostderr=INFO", "-s=/d"]),
    ),
    max_size=6,
)


@given(_FLAGS, st.booleans())
def test_background_goes_and_comes_back(flags: list[str], dashes: bool) -> None:
    child = ("./kwbase", "start-single-node", *flags, *(["--"] if dashes else []))
    whole = startflags.with_background(child)
    assert startflags.without_background(whole) == child
    parsed = startflags.parse(whole, cwd="/w", environ={})
    assert parsed.background
    assert parsed.stores == startflags.parse(child, cwd="/w", environ={}).stores


@given(st.dictionaries(st.sampled_from(["cache", "locality", "store", "max-sql-memory"]), st.lists(_WORD, min_size=1)))
def test_joined_and_separate_values_read_alike(values: dict[str, list[str]]) -> None:
    joined = [f"--{name}={value}" for name, found in values.items() for value in found]
    separate = [word for name, found in values.items() for value in found for word in (f"--{name}", value)]
    expected = ("start", {name: tuple(found) for name, found in values.items()})
    assert startflags.split(("kwbase", "start", *joined)) == expected
    assert startflags.split(("kwbase", "start", *separate)) == expected


def test_secrets_in_flags_are_hidden() -> None:
    argv = ("kwbase", "start", "--import-password=s3cret", "--import-password", "s3cret", "--store=/d")
    assert startflags.redact(argv) == (
        "kwbase", "start", "--import-password=<redacted>", "--import-password", "<redacted>", "--store=/d"
    )
