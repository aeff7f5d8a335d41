"""The command line, struck by a signal in the middle of a stage's work.

    python tests/interrupting.py STAGE SIGNAL COUNT ARGUMENT…

runs `groundup ARGUMENT…` and sends SIGNAL to itself when STAGE reports progress for the COUNTth time.
"""

import os
import signal
import sys
from typing import Any

from groundup.cli import main
from groundup.record.metrics import Progress


def strike(stage: str, number: int, count: int) -> None:
    advance, reports = Progress.advance, 0

    def advance_and_strike(self: Progress, *arguments: Any, **fields: Any) -> None:
        nonlocal reports
        advance(self, *arguments, **fields)
        reports += self._title.startswith(stage)
        if reports == count:
            os.kill(os.getpid(), number)

    Progress.advance = advance_and_strike  # type: ignore[method-assign]


if __name__ == "__main__":
    strike(sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
