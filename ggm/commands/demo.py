"""`ggm demo`: learn handwritten digits in minutes and draw what was learnt, or show a chain at work."""

from __future__ import annotations

import argparse

from ggm.commands.demo_config import DemoConfig
from ggm.commands.flags import Flags

FLAGS = (Flags(DemoConfig),)


def run(options: argparse.Namespace) -> None:
    """Check the flags before torch is loaded, then learn and draw."""
    config = FLAGS[0].make(options)
    if config.web:
        _serve(config)
        return
    from ggm.commands import digits_demo

    digits_demo.run(config)


def _serve(config: DemoConfig) -> None:
    """Show a page of a model; without one, learn one first."""
    from ggm.extras import require

    require("gradio", extra="web")
    from ggm.commands import digits_demo, web
    from ggm.commands.checkpoint import Checkpoint

    if config.checkpoint is None and not config.model.is_dir():
        digits_demo.run(config)
    web.serve(Checkpoint.open(config.checkpoint or config.model), config.port)
