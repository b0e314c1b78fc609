"""Directories of an image kept in volumes, where the engine's own file system cannot be trusted to list them.

fuse-overlayfs (storage of many rootless engines) was seen to list entries of large directories twice while several
processes read them: Go then refuses its own standard library ("case-insensitive file name collision"). A volume is a
plain directory of the daemon's file system, filled from the image once, and read-only from then on.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from kwdb_build.engine.owner import owner, owner_lives
from kwdb_build.errors import EngineError

UNRELIABLE = frozenset({"fuse-overlayfs"})
"""Storage drivers, as the daemon names them, whose listings are not relied on."""
LABEL = "kwdb-build.volume"
_OWNER = "kwdb-build.filled-by"
_FILLED = "-filled"
_WAIT_S = 600
_CONFLICT = 409


def plain_volume(api: Any, image: str, directory: str) -> str:
    """Name of the volume that holds a directory of an image; filled now when it is not there.

    api is a docker.APIClient, image an identity ('sha256:…'). The daemon copies the directory while it makes a
    container that is never started; another one's name is what lets only one caller do it at a time, and a second
    volume says that the first is whole. docker's own errors go through.
    """
    name = f"kwdb-build-{image.removeprefix('sha256:')[:16]}-{hashlib.sha256(directory.encode()).hexdigest()[:8]}"
    deadline = time.monotonic() + _WAIT_S
    while not (_exists(api, name) and _exists(api, name + _FILLED)):
        if not _fill(api, image, directory, name) and time.monotonic() > deadline:
            raise EngineError(
                f"another process has been filling the volume {name} for {_WAIT_S // 60} minutes",
                hint=f"if no kwdb-build runs any more: docker rm {name}, then the same again",
            )
    return name


def forget_volumes(api: Any, image: str) -> None:
    """Remove the volumes of an image that goes."""
    prefix = f"kwdb-build-{image.removeprefix('sha256:')[:16]}-"
    found = (api.volumes(filters={"label": LABEL}) or {}).get("Volumes") or []
    names = sorted((str(each["Name"]) for each in found), reverse=True)  # what says "filled" goes first
    for name in names:
        if name.startswith(prefix):
            api.remove_volume(name, force=True)


def _fill(api: Any, image: str, directory: str, name: str) -> bool:
    """Fill the volume; False when another process is at it (after a short pause)."""
    from docker.errors import APIError, NotFound
    from docker.types import Mount

    host = api.create_host_config(mounts=[Mount(target=directory, source=name, type="volume")], network_mode="none")
    try:
        holder = api.create_container(
            image=image, command=["true"], entrypoint=[], name=name, labels={_OWNER: owner()},
        )["Id"]
    except APIError as error:
        if error.status_code != _CONFLICT:
            raise
        try:
            made_by = str(api.inspect_container(name)["Config"]["Labels"].get(_OWNER, ""))
            if not owner_lives(made_by):
                api.remove_container(name, force=True)
        except NotFound:
            pass  # it is done, or gave up: look again
        time.sleep(0.2)
        return False
    try:
        if _exists(api, name) and _exists(api, name + _FILLED):  # the one before us was quicker
            return True
        if not _in_use(api, name):  # a build that uses it has seen it whole: only the second volume was removed
            if _exists(api, name):
                api.remove_volume(name, force=True)  # what somebody left half filled
            api.create_volume(name, labels={LABEL: directory})
            filler = api.create_container(image=image, command=["true"], entrypoint=[], host_config=host)["Id"]
            api.remove_container(filler, force=True)
        api.create_volume(name + _FILLED, labels={LABEL: directory})
    finally:
        api.remove_container(holder, force=True)
    return True


def _in_use(api: Any, name: str) -> bool:
    return bool(api.containers(filters={"volume": name, "status": "running"}))


def _exists(api: Any, name: str) -> bool:
    from docker.errors import NotFound

    try:
        api.inspect_volume(name)
    except NotFound:
        return False
    return True
