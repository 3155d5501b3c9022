"""``python -m echostream.cli``."""

import sys

from echostream.cli import main

sys.exit(main())
