"""Death or a pause on request, for the tests of kill -9 and Ctrl-C: KWDB_BUILD_FAILPOINT=<step>:<moment>.

`before` dies between the intent and the act, `after` between the act and its `done`; `hold` pauses between the intent
and the act. `undo-<step>` names the way back.
"""

from __future__ import annotations

import os
import signal
import time

_HOLD_S = 4.0


def reach(step: str, moment: str) -> None:
    """Kill this very process with SIGKILL, or pause it, when the environment asks for it here."""
    asked = os.environ.get("KWDB_BUILD_FAILPOINT")
    if asked == f"{step}:{moment}":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == f"{step}:hold" and moment == "before":
        time.sleep(_HOLD_S)
