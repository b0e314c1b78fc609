"""A stored build of the miniature as a container image that an engine really runs."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kwdb_build.build.image import STORE, MadeImage, User, make_image
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.archive import read_archive
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.files import sha256_of
from kwdb_build.model import Artifact, Toolchain
from tests.integration.certs import certificates
from tests.integration.tool import TOOLCHAIN, Answer, call
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
INSECURE = ["./kwbase", "start-single-node", "--insecure", "--listen-addr=0.0.0.0:26257", "--http-addr=0.0.0.0:8080",
            f"--store={STORE}"]
_WAIT_S = 120.0


@pytest.fixture(scope="module")
def make(
    mini_build: Callable[[str], Artifact], mini_toolchain: Toolchain, mini_home: Path
) -> Callable[..., MadeImage]:
    artifact = mini_build("V1.0.0")
    store = ArtifactStore(artifact.path.parent)

    def write(target: Path, tag: str, *, user: User | None = None) -> MadeImage:
        with target.open("wb") as stream:
            return make_image(
                store, artifact, mini_toolchain, stream, place=target.parent, tag=tag, user=user or User(),
                settings=Settings(home=mini_home), progress=Progress(), log=target.with_suffix(".log"),
            )

    return write


@contextlib.contextmanager
def loaded(engine: DockerEngine, make: Callable[..., MadeImage], place: Path, user: User) -> Iterator[MadeImage]:
    tag = f"kwdb-build-test/kwdb:{uuid.uuid4().hex[:12]}"
    made = make(place / "image.tar", tag, user=user)
    try:
        assert engine.load_image(place / "image.tar").tag == tag
        yield made
    finally:
        engine.remove_image(tag)


class Container:
    """One server in a container, its SQL port on this machine's loopback."""

    def __init__(self, engine: DockerEngine, tag: str, volume: str, *, certs: Path | None = None) -> None:
        self._api: Any = engine._api
        self.port = free_port()
        binds = {volume: {"bind": str(STORE), "mode": "rw"}}
        self._login: dict[str, Any] = {}
        if certs:
            binds[str(certs)] = {"bind": "/kaiwudb/certs", "mode": "ro"}
            self._login = {
                "sslmode": "verify-full", "sslrootcert": certs / "ca.crt", "sslcert": certs / "client.root.crt",
                "sslkey": certs / "client.root.key",
            }
        host = self._api.create_host_config(
            binds=binds, port_bindings={26257: ("127.0.0.1", self.port)}, cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
        command = None if certs else INSECURE  # the image's own asks for certificates
        self.id = self._api.create_container(image=tag, command=command, ports=[26257], host_config=host)["Id"]
        self._api.start(self.id)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement from this machine, as soon as the server answers."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                with psycopg.connect(
                    host="localhost", hostaddr="127.0.0.1", port=self.port, user="root", **self._login, dbname="defaultdb", autocommit=True,
                    prepare_threshold=None, cursor_factory=psycopg.ClientCursor, gssencmode="disable", connect_timeout=5,
                ) as connection:
                    answer = connection.execute(statement)
                    return answer.fetchall() if answer.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline or not self.state()["Running"]:
                    raise AssertionError(self.logs()) from None
                time.sleep(0.1)

    def run(self, *argv: str) -> tuple[int, str]:
        """Run a program inside."""
        made = self._api.exec_create(self.id, list(argv))
        said = self._api.exec_start(made["Id"]).decode()
        return int(self._api.exec_inspect(made["Id"])["ExitCode"]), said

    def state(self) -> dict[str, Any]:
        return dict(self._api.inspect_container(self.id)["State"])

    def logs(self) -> str:
        return str(self._api.logs(self.id).decode())

    def stop(self) -> int:
        """SIGTERM, as `docker stop`; the exit code."""
        self._api.stop(self.id, timeout=int(_WAIT_S))
        return int(self.state()["ExitCode"])

    def remove(self) -> None:
        self._api.remove_container(self.id, force=True, v=True)


def test_the_same_build_gives_the_same_image(make: Callable[..., MadeImage], tmp_path: Path) -> None:
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    made = [make(path, "kwdb-build-test/same:1") for path in paths]
    assert made[0] == made[1]
    assert sha256_of(paths[0]) == sha256_of(paths[1])
    archive = read_archive(paths[0])
    assert archive.diff_ids == made[0].layers
    assert archive.environment["LD_LIBRARY_PATH"] == "/kaiwudb/lib"
    assert made[0].size_bytes < 100 << 20
    names = {entry.partition("=")[0] for entry in made[0].packages}
    assert {"bash", "libc6", "libstdc++6"} <= names
    assert not names & {"gcc", "make", "git", "cmake", "libc6-dev"}


@pytest.mark.parametrize("user", [User(), User(uid=1234, gid=2345)], ids=["root", "ordinary user"])
def test_a_server_runs_in_it_drains_and_keeps_its_data(
    engine: DockerEngine, make: Callable[..., MadeImage], tmp_path: Path, user: User
) -> None:
    with loaded(engine, make, tmp_path, user) as made, contextlib.ExitStack() as ends:
        assert engine.image_id(made.tag) == made.image_id
        volume = f"kwdb-build-test-{uuid.uuid4().hex[:12]}"
        ends.callback(engine._api.remove_volume, volume)
        engine._api.create_volume(volume)
        first = Container(engine, made.tag, volume)
        ends.callback(first.remove)
        first.sql("CREATE DATABASE shop")
        first.sql("CREATE TABLE shop.orders (id INT8 PRIMARY KEY, item VARCHAR)")
        first.sql("INSERT INTO shop.orders VALUES (1, 'one'), (2, 'two')")
        assert first.run("cat", "/proc/1/comm") == (0, "kwbase\n")
        assert first.run("id", "-u") == (0, f"{user.uid}\n")
        code, said = first.run("/usr/local/bin/kwdb-health")
        assert code == 0, said
        assert first.stop() == 0
        assert "server drained and shutdown completed" in first.logs()

        second = Container(engine, made.tag, volume)
        ends.callback(second.remove)
        assert second.sql("SELECT count(*) FROM shop.orders") == [(2,)]
        assert second.stop() == 0
        assert "restarted pre-existing node" in second.logs()


def test_the_images_own_command_serves_with_the_certificates_that_are_mounted(
    engine: DockerEngine, make: Callable[..., MadeImage], tmp_path: Path
) -> None:
    certificates(tmp_path / "certs")
    with loaded(engine, make, tmp_path, User()) as made, contextlib.ExitStack() as ends:
        volume = f"kwdb-build-test-{uuid.uuid4().hex[:12]}"
        ends.callback(engine._api.remove_volume, volume)
        engine._api.create_volume(volume)
        server = Container(engine, made.tag, volume, certs=tmp_path / "certs")
        ends.callback(server.remove)
        assert server.sql("SELECT 1") == [(1,)]
        code, said = server.run("/usr/local/bin/kwdb-health")
        assert code == 0, said
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host="127.0.0.1", port=server.port, user="root", dbname="defaultdb", sslmode="disable")
        assert server.stop() == 0


@pytest.mark.slow
def test_the_command_line_gives_the_same_image_each_time_in_a_file_or_in_the_engine(
    engine: DockerEngine, mini_build: Callable[[str], Artifact], mini_home: Path, tmp_path: Path
) -> None:
    key = mini_build("V1.0.0").key.digest
    tag = f"kwdb-build-test/kwdb:{uuid.uuid4().hex[:12]}"

    def image(*words: str) -> Answer:
        return call("image", key, "--tag", tag, "--home", str(mini_home), "--toolchain", str(TOOLCHAIN),
                    "--docker-host", engine.address, "--json", *words)

    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    first, second = (image("--output", str(path)) for path in paths)
    assert first.code == second.code == 0, first.err + second.err
    assert sha256_of(paths[0]) == sha256_of(paths[1])
    assert image("--output", str(paths[0])).code == ExitCode.USAGE, "a file is not replaced unasked"
    loaded = image()
    try:
        assert loaded.code == 0, loaded.err
        assert loaded.json["image"] == first.json["image"] == second.json["image"]
        assert engine.image_id(tag) == first.json["image"]["image_id"]
    finally:
        engine.remove_image(tag)


def test_the_health_check_fails_where_no_server_answers(
    engine: DockerEngine, make: Callable[..., MadeImage], tmp_path: Path
) -> None:
    with loaded(engine, make, tmp_path, User()) as made, contextlib.ExitStack() as ends:
        container = engine._api.create_container(image=made.tag, command=["sleep", "600"])["Id"]
        ends.callback(engine._api.remove_container, container, force=True, v=True)
        engine._api.start(container)
        run = engine._api.exec_create(container, ["/usr/local/bin/kwdb-health"])
        engine._api.exec_start(run["Id"])
        assert engine._api.exec_inspect(run["Id"])["ExitCode"] == 1
        config = engine._api.inspect_image(made.tag)["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/kwdb-health"]
    assert config["Volumes"] == {"/kaiwudb/deploy": {}}
    assert config["ExposedPorts"].keys() == {"26257/tcp", "8080/tcp"}
    assert (config["WorkingDir"], config["StopSignal"]) == ("/kaiwudb/bin", "SIGTERM")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == "V1.0.0"
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert labels["org.opencontainers.image.source"]
