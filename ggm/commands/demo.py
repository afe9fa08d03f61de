"""`ggm demo`: learn handwritten digits in minutes and draw what was learnt."""

from __future__ import annotations

import argparse

from ggm.commands.demo_config import DemoConfig
from ggm.commands.flags import Flags

FLAGS = (Flags(DemoConfig),)


def run(options: argparse.Namespace) -> None:
    """Check the flags before torch is loaded, then learn and draw."""
    config = FLAGS[0].make(options)
    from ggm.commands import digits_demo

    digits_demo.run(config)
