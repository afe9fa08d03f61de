"""The commands: a module for each, with `FLAGS` (the first are its own) and `run`."""

COMMANDS = (
    "demo",
    "train",
    "plot",
    "sample",
    "infill",
    "evaluate",
    "score",
    "info",
    "train-vq",
    "completion",
)
