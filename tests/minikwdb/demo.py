"""The demo behind `nox -s demo`: a real upgrade of the miniature, by the command line that users have.

Builds release V1.0.0 in the build container, installs and starts it, writes rows of both kinds, then runs
`kwdb-build upgrade` to the release named on the command line (default V1.1.0; V1.2.0 does not start, which its
trial finds out; V1.3.0 loses its time-series rows and shows the way back). Everything lies under .demo/ in the project's folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.minikwdb.instance import ORDERS, READINGS, Instance
from tests.minikwdb.repositories import MiniRepositories, make_repositories

ROOT = Path(__file__).parents[2]
DEMO = ROOT / ".demo"
FIRST, SECOND = "V1.0.0", "V1.1.0"


def main(argv: list[str]) -> int:
    """Run the demo; the exit code is the upgrade's own."""
    target = argv[0] if argv else SECOND
    repositories = _repositories()
    say(f"1. Build {FIRST} of the miniature in the build container (the very first time makes the build image, too).")
    built = kwdb_build("build", FIRST, *source(repositories), "--json", capture=True)
    if built.returncode != 0:
        return built.returncode
    instance = Instance(root=DEMO / f"server-{time.strftime('%Y%m%dT%H%M%S')}")
    instance.install(Path(json.loads(built.stdout)["artifact"]["path"]))
    say("\n2. Start it with --background, and write rows.")
    pid = instance.start()
    try:
        instance.write_rows()
        say(f"   pid {pid} listens on 127.0.0.1:{instance.sql_port}: {ORDERS} orders, {READINGS} sensor readings")
        say(f"\n3. kwdb-build upgrade {target} -y  (the same as: nox -s upgrade -- {target} -y)")
        upgraded = kwdb_build("upgrade", target, *source(repositories), "--store", str(instance.store), "-y")
        say("\n4. What a client sees now:")
        for query in ("SELECT version()", "SELECT count(*) FROM shop.orders", "SELECT count(*) FROM plant.sensor"):
            say(f"   {query}: {instance.value(query)}")
        say("\n5. kwdb-build history")
        kwdb_build("history", "--home", str(DEMO / "home"))
    finally:
        instance.stop()
    return upgraded.returncode


def say(text: str) -> None:
    """One line of the demo itself."""
    print(text, file=sys.stderr, flush=True)


def source(repositories: MiniRepositories) -> list[str]:
    """Options that point the tool to the miniature's repositories instead of KWDB's."""
    prefix, replacement = repositories.redirect
    return [
        "--home",
        str(DEMO / "home"),
        "--url",
        str(repositories.main),
        "--redirect",
        f"{prefix}={replacement}",
        "--toolchain",
        str(Path(__file__).parent / "toolchain"),
    ]


def kwdb_build(*argv: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "kwdb_build", *argv],
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
    )


def _repositories() -> MiniRepositories:
    root = DEMO / "repositories"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return make_repositories(root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
