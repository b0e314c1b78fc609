"""Entry point of `kwdb-build` and `python -m kwdb_build`."""

from __future__ import annotations

try:
    import contextlib
    import os
    import signal
    import sys
except KeyboardInterrupt:  # nothing has begun: no reason to show a person where Python was
    raise SystemExit(130) from None

_INTERRUPTED = 130
"""errors.ExitCode.INTERRUPTED, which is not imported here: signals are taken over first."""


def main() -> None:
    """Run the command line and exit with its documented code."""
    try:
        _open_missing_streams()
        _read_names_as_utf8()
        end_in_order()
        from kwdb_build.cli import run
    except KeyboardInterrupt:  # while Python still imports: nothing has begun, and there is nothing to say
        code = _INTERRUPTED
    else:
        code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written any more was reported already; the code below is the answer that counts.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == _INTERRUPTED:
        # An interrupt that came while Python ran code from a string (it makes dataclasses so) lets `python -m` end by
        # the signal itself, although the interrupt was caught: a caller would see -2 instead of the documented code.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.exit(code)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: with what it started ended, and its temporaries removed.

    A verb that must not be left in the middle takes the signals over. A SIGHUP that is ignored (nohup) stays so.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, interrupt)


def _read_names_as_utf8() -> None:
    """Begin again in UTF-8 mode under a locale of another encoding.

    Names of files would be decoded by that encoding: a run would write down names that a resume under another locale
    does not find. The terminal keeps its encoding. (Python itself does this for LANG=C.)
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stderr.encoding}:backslashreplace")
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606  (this very command)


def _open_missing_streams() -> None:
    """Give 0, 1 and 2 back to a process that was started without them (`>&-`).

    Otherwise the next file opened, a journal say, would get such a number, and a stray message would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                if fd != number:
                    os.dup2(fd, number)
                    os.close(fd)
                setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
