"""``python -m resdm``: the command line of the suite."""

import sys

from resdm_suite.apps.cli import main

sys.exit(main())
