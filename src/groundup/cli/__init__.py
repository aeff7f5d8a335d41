"""The command line: one verb per stage, and verbs to look at a run and to talk with its model.

This file holds what all verbs share: how a command starts, and how it ends. An exit code of 0 means done, 2 a mistake
the user can mend (one sentence says which), 130 Ctrl-C, 143 a request to end (SIGTERM), 1 a defect of ours (traceback).
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from groundup.cli.failures import explain
from groundup.errors import UserError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
ISSUES = "the project's issue tracker"


class Terminated(KeyboardInterrupt):
    """SIGTERM: everything ends as after Ctrl-C, but for the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    flags: argparse.Namespace | None = None
    try:
        flags = _read_flags(sys.argv[1:] if argv is None else argv)
        if flags is not None:
            _prepare(flags)
            flags.handler(flags)
            sys.stdout.flush()
    except Terminated:
        return _end(f"stopped; {_what_next(flags)}", 143)
    except KeyboardInterrupt:
        return _end(f"interrupted; {_what_next(flags)}", 130)
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            traceback.print_exc()
            return _end(f"this is a defect of groundup: please report it with the lines above to {ISSUES}", 1)
        return _end(sentence, 2)
    return 0


def _read_flags(argv: Sequence[str]) -> argparse.Namespace | None:
    """The flags of a command; None where there is none, and help was shown instead."""
    from groundup.cli.parser import build_parser, parse

    parser = build_parser()
    if not argv:
        parser.print_help()
        return None
    return parse(parser, argv)


def _prepare(flags: argparse.Namespace) -> None:
    """What the flags of every verb ask for."""
    if flags.quiet:
        os.environ["GROUNDUP_QUIET"] = "1"
    if flags.threads is not None:
        if flags.threads < 1:
            raise UserError(f"--threads must be at least 1, not {flags.threads}")
        # The libraries read these when they are loaded, which no verb has done yet.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(flags.threads)))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C ends the program at once: nothing of value depends on its cleaning up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def _what_next(flags: argparse.Namespace | None) -> str:
    """What becomes of a command that did not come to its end."""
    resumes = flags is not None and flags.resumes
    return "the same command goes on from here" if resumes else "the same command begins anew"


def _end(sentence: str, code: int) -> int:
    print(f"groundup: {sentence}", file=sys.stderr)
    return code
