"""The command line as a user runs it, against the miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwdb_build.model import Artifact
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories

TOOLCHAIN = Path(__file__).parents[1] / "minikwdb" / "toolchain"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one call said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Its --json document."""
        return dict(json.loads(self.out))


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One home (with builds shared from another one), one source."""

    home: Path
    repositories: MiniRepositories
    docker_host: str

    def argv(self, verb: str, *words: str) -> list[str]:
        """The command of a verb."""
        prefix, replacement = self.repositories.redirect
        options = ["--home", str(self.home)]
        if verb in {"upgrade", "plan", "fetch", "check", "build"}:
            options += ["--url", str(self.repositories.main), "--redirect", f"{prefix}={replacement}"]
        if verb in {"upgrade", "plan", "check", "build"}:
            options += ["--toolchain", str(TOOLCHAIN), "--docker-host", self.docker_host]
        return [sys.executable, "-m", "kwdb_build", verb, *options, *words]

    def __call__(self, verb: str, *words: str, timeout_s: float = 240, **environment: str) -> Answer:
        """Run a verb to its end."""
        done = subprocess.run(
            self.argv(verb, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=timeout_s, env=clean_environment(environment),
        )
        return Answer(code=done.returncode, out=done.stdout, err=done.stderr)

    def begin(self, verb: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a verb in a session of its own, as a terminal would."""
        return subprocess.Popen(
            self.argv(verb, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=clean_environment(environment), start_new_session=True,
        )

    def upgrade(self, instance: Instance, ref: str, *words: str, **environment: str) -> Answer:
        """Upgrade one instance without asking."""
        return self("upgrade", ref, "--store", str(instance.store), "-y", *words, **environment)

    def newest_run(self) -> Path:
        """Directory of the newest run."""
        return max((self.home / "runs").iterdir())

    def journal(self) -> list[dict[str, Any]]:
        """Journal of the newest run."""
        text = (self.newest_run() / "journal.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def await_intent(self, step: str, phase: str = "apply", timeout_s: float = 120) -> None:
        """Wait until the newest run is about to do a step."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (self.home / "runs").is_dir() and any((self.home / "runs").iterdir()):
                path = self.newest_run() / "journal.jsonl"
                if path.exists() and any(
                    r["step"] == step and r["phase"] == phase and r["event"] == "intent" for r in self.journal()
                ):
                    return
            time.sleep(0.05)
        message = f"no intent of {step} within {timeout_s} s"
        raise TimeoutError(message)


def clean_environment(more: dict[str, str]) -> dict[str, str]:
    """This environment without settings of the tool, and with what a test adds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KWDB_BUILD_")}
    # A shorter second look than users get: the tests start hundreds of servers. Tests of that look ask for the default.
    return kept | {"KWDB_BUILD_SETTLE_S": "1"} | more


def share_builds(home: Path, artifacts: list[Artifact]) -> None:
    """Give a fresh home the builds of another one (hard links where they can be: a stored build is read-only)."""
    for artifact in artifacts:
        target = home / "artifacts" / artifact.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = artifact.path.stat().st_dev == target.parent.stat().st_dev
        subprocess.run(["cp", "-al" if linked else "-a", artifact.path, target], check=True)


def call(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> Answer:
    """The command line, perhaps below another program."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "kwdb_build", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2], env=clean_environment(environment), timeout=1000,
    )
    return Answer(code=done.returncode, out=done.stdout, err=done.stderr)
