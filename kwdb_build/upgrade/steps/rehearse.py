"""The start command and the new version put to the test while the old server runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kwdb_build import command
from kwdb_build.errors import TrialError
from kwdb_build.model import Verdict
from kwdb_build.upgrade.steps.base import Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from kwdb_build.model import Artifact
    from kwdb_build.upgrade.context import Context


class Validate(Step):
    """Compare the captured command with what the new version takes."""

    name = "validate"
    title = "check the start command against the new version"

    def probe(self, context: Context) -> bool:
        """Always looked at again."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Refuse what would not come up; tell what may surprise."""
        from kwdb_build.server import capture, validate

        deployment = context.renewed
        rows = validate.check(
            deployment, known=flags_of(context.artifact, deployment.start.command),
            known_before=capture.flags_known(deployment), user=context.settings.sql_user,
        )
        validate.require(rows)
        for row in rows:
            if row.verdict is Verdict.WARN:
                context.console.note(f"  look at: {row.name}: {row.found}. {row.fix}".rstrip(". "), style="yellow")
        passed = sum(row.verdict is Verdict.OK for row in rows)
        context.console.update(f"{passed} things as they should be")
        return {"passed": passed, "warnings": [row.name for row in rows if row.verdict is Verdict.WARN]}


class Trial(Step):
    """Let the new version live for a moment on a scratch store."""

    name = "trial"
    title = "try the new version on an empty store"

    def probe(self, context: Context) -> bool:
        """Tried again by a resume: what a killed trial left is removed first."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Start, write and read, stop."""
        from kwdb_build.server import trial

        trial.sweep([context.run.trial], context.console)
        if context.request.no_trial:
            context.console.update("skipped: --no-trial")
            return {"skipped": "--no-trial"}
        passed = trial.run(
            context.renewed, context.artifact, known=flags_of(context.artifact, "start-single-node"),
            record=context.run.trial, log_dir=context.run.logs / "trial",
            timeout_s=context.settings.start_timeout_s, progress=context.console,
        )
        words = f"without SQL: {passed.without_sql}" if passed.without_sql else "written and read, both kinds of table"
        context.console.update(f"ready after {passed.ready_s:.1f} s, {words}")
        return {"ready_s": round(passed.ready_s, 3)}

    def discard(self, context: Context) -> None:
        """Remove what a trial that was cut off has left."""
        from kwdb_build.server import trial

        trial.sweep([context.run.trial], context.console)


def flags_of(artifact: Artifact, verb: str) -> Collection[str]:
    """Names of the flags that a built kwbase takes for a start command. Errors: TrialError when it does not say."""
    from kwdb_build.server import usage

    try:
        answer = command.run(
            [str(artifact.kwbase), verb, "--help"], timeout_s=60,
            env={"LD_LIBRARY_PATH": str(artifact.path / "lib"), "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
    except command.CommandError as error:
        raise TrialError(f"the new version has no `{verb}`: {error.message}", context=error.context) from error
    known = usage.parse(answer.stdout + answer.stderr)
    if not known:
        raise TrialError(f"`kwbase {verb} --help` of the new version lists no flags", context=answer.stdout[-2000:])
    return known.keys()
