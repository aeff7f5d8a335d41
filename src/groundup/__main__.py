"""`python -m groundup`: the same as the command `groundup`."""

import sys

from groundup.cli import main

sys.exit(main())
