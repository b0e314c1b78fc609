"""Who made a container, and whether that process lives: a wrong no removes the container of somebody else's build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.engine.owner import owner, owner_lives


def test_this_process_lives() -> None:
    assert owner_lives(owner())


def test_a_process_that_ended_does_not() -> None:
    script = "from kwdb_build.engine.owner import owner; print(owner())"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    assert said != owner()
    assert not owner_lives(said)


def test_a_later_process_with_the_same_pid_is_another() -> None:
    place, pid, started = owner().split(":")
    assert pid == str(os.getpid())
    assert not owner_lives(f"{place}:{pid}:{int(started) - 100}")


def test_no_time_of_day_is_in_it() -> None:
    """A clock that is set meanwhile would make a living owner look dead: only ticks since boot are compared."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert owner().split(":")[1:] == [str(os.getpid()), ticks]


@pytest.mark.parametrize("text", ["", "somebody", "a:b:c"])
def test_nobody(text: str) -> None:
    assert not owner_lives(text)


def test_another_machine_cannot_be_looked_into() -> None:
    assert owner_lives("elsewhere 4026531836:1:0")


def test_a_container_with_this_hosts_name_has_other_pids() -> None:
    """As with `docker run --network host` and the engine's socket mounted: same host name, same engine, other pids."""
    script = "import sys; from kwdb_build.engine.owner import owner_lives; print(owner_lives(sys.argv[1]))"
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not make a pid namespace here")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script, owner()], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True"


def test_who_cannot_be_seen_may_live() -> None:
    """With hidepid another user's processes have no /proc/PID; whether there is one can still be asked."""
    script = """if True:
        import os, sys
        from kwdb_build.engine.owner import owner, owner_lives
        place, _, _ = owner().split(":")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        print(os.path.exists(f"/proc/{sys.argv[1]}"), *(owner_lives(f"{place}:{pid}:7") for pid in sys.argv[1:]))
    """
    gone = subprocess.Popen(["true"])
    gone.wait()
    inside = ["unshare", "--mount", "sh", "-ec", 'mount -t proc -o hidepid=2 proc /proc; exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not mount /proc here")
    done = subprocess.run(
        [*inside, sys.executable, "-c", script, str(os.getpid()), str(gone.pid)], check=True, capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "True", "False"]
