"""Levers of a model and its training, at equal seconds: `python -m benchmarks.choices`."""
