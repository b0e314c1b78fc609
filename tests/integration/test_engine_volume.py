"""Directories of an image in volumes: filled once whoever comes at the same time, whole or not used at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.engine.owner import owner
from kwdb_build.engine.volume import plain_volume
from tests.integration.enginebox import PROGRAMS, shell, tiny_image

pytestmark = pytest.mark.engine


@pytest.fixture
def image(engine: DockerEngine, tmp_path: Path) -> Iterator[str]:
    """One of its own: its volumes go with it."""
    with tiny_image(engine, tmp_path) as tag:
        yield tag


def content(engine: DockerEngine, image: str, tmp_path: Path) -> list[str]:
    """What a run that is about to list /bin finds there."""
    lines: list[str] = []
    engine.run(shell(image, "ls /bin", listed=("/bin",)), on_line=lines.append, log=tmp_path / "log")
    return lines


def volumes(engine: DockerEngine, identity: str) -> list[str]:
    prefix = f"kwdb-build-{identity.removeprefix('sha256:')[:16]}-"
    found = engine._api.volumes()["Volumes"] or []
    return sorted(volume["Name"] for volume in found if volume["Name"].startswith(prefix))


def test_many_at_once_fill_it_once(engine: DockerEngine, image: str, tmp_path: Path, engine_address: str) -> None:
    identity = engine.image_id(image)
    assert identity is not None

    def fill(_: int) -> str:
        with DockerEngine.connect(engine_address) as own:
            return plain_volume(own._api, identity, "/bin")

    with ThreadPoolExecutor(4) as pool:
        names = set(pool.map(fill, range(4)))
    assert len(names) == 1
    assert volumes(engine, identity) == [*names, f"{names.pop()}-filled"]
    assert content(engine, image, tmp_path) == sorted(PROGRAMS)
    engine.remove_image(image)
    assert volumes(engine, identity) == []


def test_what_a_killed_process_left_is_filled_anew(engine: DockerEngine, image: str, tmp_path: Path) -> None:
    """Killed after it took the name and made the volume, before all of it was there."""
    identity = engine.image_id(image)
    assert identity is not None
    name = plain_volume(engine._api, identity, "/bin")
    engine._api.remove_volume(f"{name}-filled")
    engine._api.remove_volume(name)
    engine._api.create_volume(name)
    place, pid, ticks = owner().split(":")
    engine._api.create_container(
        image=image, command=["true"], entrypoint=[], name=name,
        labels={"kwdb-build.filled-by": f"{place}:{pid}:{int(ticks) - 100}"},
    )
    assert plain_volume(engine._api, identity, "/bin") == name
    found = engine._api.create_container(image=image, command=["/bin/true"], entrypoint=[], host_config=(
        engine._api.create_host_config(binds=[f"{name}:/seen:ro"])))["Id"]
    try:
        stream, _ = engine._api.get_archive(found, "/seen")
        assert sum(len(chunk) for chunk in stream) > sum(1 for _ in PROGRAMS) * 1000
    finally:
        engine._api.remove_container(found, force=True)
    assert engine._api.containers(all=True, filters={"name": f"^/{name}$"}) == []


def test_only_the_mark_was_removed(engine: DockerEngine, image: str) -> None:
    """As `docker volume prune` does while a build uses the volume itself."""
    identity = engine.image_id(image)
    assert identity is not None
    name = plain_volume(engine._api, identity, "/bin")
    host = engine._api.create_host_config(binds=[f"{name}:/bin:ro"], init=True)
    user = engine._api.create_container(image=image, command=["/bin/sleep", "600"], entrypoint=[], host_config=host)["Id"]
    try:
        engine._api.start(user)
        engine._api.remove_volume(f"{name}-filled")
        assert plain_volume(engine._api, identity, "/bin") == name
        assert engine._api.inspect_container(user)["State"]["Running"]
    finally:
        engine._api.remove_container(user, force=True)
