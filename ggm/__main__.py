"""``python -m ggm``: the same as the command ``ggm``."""

import sys

from ggm.commands.cli import main

sys.exit(main())
