"""The server's own words, as V3.1.0 and V3.2.1 write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import StartError
from kwdb_build.model import NodeIdentity
from kwdb_build.server import logs, readiness
from kwdb_build.server.logs import Banner

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = "e987f332-9bc2-4497-96cf-0bb7327437df"
BANNER = f"""KWDB node starting at 2026-11-22 08:42:37.955995622 +0000 UTC (took 0.7s)
build:                V3.1.0 @ 2026/11/22 08:30:25 (go1.22.10)
sql:                 postgresql://root@127.0.0.1:36257?sslmode=disable
RPC client flags:    ./kwbase <client cmd> --host=127.0.0.1:36257 --insecure
logs:                /data/kw/logs
temp dir:            /data/kw/kwbase-temp3067736316
external I/O path:   /data/kw/extern
store[0]:            path=/data/kw
storage engine:      rocksdb
ts storage engine:   kwtsdb
status:              restarted pre-existing node
clusterID:           {CLUSTER}
nodeID:              1
"""
LOG = (
    "I261122 08:42:37.100000 1 cli/start.go:1169  logging to directory /data/kw/logs\n"
    "I261122 08:42:37.955995 66 cli/start.go:811  node startup completed:\n"
    + BANNER
    + "I261122 08:42:38.000000 70 server/x.go:1  [n1] something: else\n"
)
IDENTITY = NodeIdentity(cluster_id=CLUSTER, node_id="1")


@pytest.mark.parametrize("text", [BANNER, LOG, "noise\n\n" + BANNER.rstrip("\n")])
def test_banner(text: str) -> None:
    assert logs.parse_banner(text) == Banner(
        build="V3.1.0 @ 2026/11/22 08:30:25 (go1.22.10)", status="restarted pre-existing node", cluster_id=CLUSTER,
        node_id="1",
    )


def test_the_last_banner_counts() -> None:
    newer = BANNER.replace("restarted pre-existing node", "initialized new cluster").replace(CLUSTER, "other")
    found = logs.parse_banner(LOG + newer)
    assert found is not None
    assert (found.status, found.cluster_id) == ("initialized new cluster", "other")


@pytest.mark.parametrize("text", ["", "nodeID: 1\n", BANNER[: BANNER.index("nodeID")], "node startup completed:\n"])
def test_no_banner_yet(text: str) -> None:
    assert logs.parse_banner(text) is None


def test_half_of_a_newer_banner_leaves_the_older() -> None:
    found = logs.parse_banner(LOG + BANNER[:60])
    assert found is not None
    assert found.node_id == "1"


def test_only_what_came_since_the_mark(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    old = directory / "kwbase.host.kw.2026-11-22T08_42_37Z.000100.log"
    old.write_text(LOG)
    (directory / "kwbase.log").symlink_to(old.name)
    (directory / "kwbase-rocksdb.log").write_text("")
    stdout = tmp_path / "out"
    stdout.write_text("before\n")
    moment = logs.mark(directory, [stdout, tmp_path / "never"])
    assert logs.since(moment) == ""
    with old.open("a") as stream:
        stream.write("server drained and shutdown completed")
    (directory / "kwbase.host.kw.2026-11-22T09_00_00Z.000200.log").write_text("new process\n")
    (directory / "kwbase-rocksdb.log").write_text("not the server's words\n")
    with stdout.open("a") as stream:
        stream.write("after\n")
    text = logs.since(moment)
    assert sorted(text.splitlines()) == ["after", "new process", "server drained and shutdown completed"]
    assert text.count("after") == 1


def test_a_file_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("long enough before")
    moment = logs.mark(None, [out])
    out.write_text("new\n")
    assert logs.since(moment) == "new\n"


def test_tail() -> None:
    assert logs.tail("a\n\nb\nc  \n\n", 2) == "b\nc"


def banner(status: str = logs.RESTARTED, cluster: str = CLUSTER, node: str = "1") -> Banner:
    return Banner(build="V3", status=status, cluster_id=cluster, node_id=node)


def test_the_same_node_passes() -> None:
    readiness.check_identity(IDENTITY, banner(), IDENTITY)
    readiness.check_identity(IDENTITY, None, IDENTITY)
    readiness.check_identity(IDENTITY, banner(status=logs.NEW_CLUSTER), None)


@pytest.mark.parametrize(("found", "said", "word"), [
    (NodeIdentity(cluster_id="x", node_id="1"), banner(logs.NEW_CLUSTER, "x"), "initialized new cluster"),
    (IDENTITY, banner(logs.NEW_NODE), "joined"),
    (NodeIdentity(cluster_id="x", node_id="1"), None, "another node"),
    (NodeIdentity(cluster_id=CLUSTER, node_id="2"), None, "another node"),
    (IDENTITY, banner(cluster="x"), "another node"),
    (IDENTITY, banner(node="2"), "another node"),
    (NodeIdentity(cluster_id="x", node_id="1"), banner(), "another node"),
])
def test_another_node_does_not(found: NodeIdentity, said: Banner | None, word: str) -> None:
    with pytest.raises(StartError) as caught:
        readiness.check_identity(found, said, IDENTITY)
    assert word in caught.value.message
    assert CLUSTER in caught.value.context
    assert "store" in caught.value.hint
