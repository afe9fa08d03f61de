"""``python -m ggm``: the same as the command ``ggm``."""

import sys

from ggm.cli import main

sys.exit(main())
