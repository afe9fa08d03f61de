"""MAUVE, by the package mauve-text: how far a set of texts is from another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy
import torch

from ggm.evaluation.config import MauveConfig
from ggm.evaluation.reasons import reason
from ggm.extras import require


def check_mauve(config: MauveConfig) -> None:
    """Check that MAUVE can be computed, before other work is done.

    Raises
    ------
    MissingExtraError
        If mauve-text is not installed.
    ValueError
        If the model cannot be had.
    """
    require("mauve", extra="mauve")
    try:
        require("mauve.utils", extra="mauve").get_tokenizer(config.model)
    except Exception as error:  # of many kinds, and of many lines
        raise ValueError(
            f"mauve.model: {config.model!r} cannot be used by mauve-text: {reason(error)}"
        ) from error


def mauve(
    texts: Sequence[str], reference: Sequence[str], config: MauveConfig, *, progress: bool = False
) -> dict[str, Any]:
    """MAUVE of two sets of texts.

    Parameters
    ----------
    texts, reference : sequence of str
        Empty texts are left out, as mauve-text does.
    config : MauveConfig
        How.
    progress : bool
        Whether mauve-text shows its bars.

    Returns
    -------
    dict
        ``value`` in (0, 1], 1 for equal distributions, with what it depends on.
    """
    if not progress:
        os.environ["DISABLE_TQDM"] = "1"  # what mauve-text, and nothing else, looks at
    ours, theirs = [text for text in texts if text], [text for text in reference if text]
    device = torch.device(config.device)
    found = require("mauve", extra="mauve").compute_mauve(
        p_text=theirs,
        q_text=ours,
        featurize_model_name=config.model,
        max_text_length=config.max_length,
        device_id=(device.index or 0) if device.type == "cuda" else -1,
        batch_size=config.batch,
        seed=config.seed,
        verbose=False,
    )
    # Of equal histograms MAUVE is 1; mauve-text sorts the ties of their curve as it happens, and gives less.
    equal = numpy.array_equal(found.p_hist, found.q_hist)
    return {
        "value": 1.0 if equal else float(found.mauve),
        "model": config.model,
        "max_length": config.max_length,
        "buckets": int(found.num_buckets),
        "seed": config.seed,
        "samples": len(ours),
        "reference_texts": len(theirs),
        "version": version("mauve-text"),
    }
