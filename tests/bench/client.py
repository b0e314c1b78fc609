"""An outside client: asks SELECT 1 every 5 ms until its stdin closes, then prints how long it was without an answer.

    python -m tests.bench.client PORT

The same client watches the bare restart and the tool's, so that what it costs itself is in both.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

import psycopg

PAUSE_S = 0.005


def main(port: int) -> None:
    """Ask until nobody wants to know; one JSON line at the end.

    longest_s: the longest time between two answers; again: when it ended, in unix seconds; answers: how many.
    """
    connection: psycopg.Connection[Any] | None = None
    last, longest, again, answers = 0.0, 0.0, 0.0, 0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        try:
            connection = connection or connect(port)
            connection.execute("SELECT 1").fetchone()
        except psycopg.Error:
            if connection is not None:
                connection.close()
            connection = None
            continue
        now = time.monotonic()
        if last and now - last > longest:
            longest, again = now - last, time.time()
        elif not last:
            print("answered", flush=True)
        last, answers = now, answers + 1
    print(json.dumps({"longest_s": longest, "again": again, "answers": answers}), flush=True)


def connect(port: int) -> psycopg.Connection[Any]:
    """Connect as a client of KWDB does."""
    return psycopg.connect(
        host="127.0.0.1", port=port, user="root", dbname="defaultdb", sslmode="disable", autocommit=True,
        prepare_threshold=None, cursor_factory=psycopg.ClientCursor, connect_timeout=2,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
