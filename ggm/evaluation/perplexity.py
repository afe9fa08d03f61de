"""Generative perplexity: how likely samples are under a causal language model of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ggm.evaluation.config import PerplexityConfig
from ggm.evaluation.reasons import reason
from ggm.evaluation.statistics import standard_error
from ggm.extras import require
from ggm.processes import ALONE, Processes
from ggm.progress import progress_bar

DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# For a model that has no longest sequence of its own.
_DEFAULT_LENGTH = 1024


class LanguageModel:
    """A causal language model of Hugging Face, and its tokenizer.

    Parameters
    ----------
    config : PerplexityConfig
        Which, and how it is used.
    processes : Processes
        Who shares out the batches: all of them score the same samples.

    Raises
    ------
    OSError, ValueError
        If it cannot be had, or is not causal: then a token's likelihood would know later ones.
    MissingExtraError
        If transformers is not installed.
    """

    def __init__(self, config: PerplexityConfig, processes: Processes = ALONE) -> None:
        self.config, self._processes = config, processes
        self.tokenizer, self.model = _load(config)
        size = int(self.model.get_input_embeddings().weight.shape[0])
        self._vocab_size = size
        self.max_length = self._length()
        self.start: int | None = None
        if config.start_token:
            self.start = self.tokenizer.bos_token_id
            if self.start is None:
                raise ValueError(f"start_token: the tokenizer of {config.model} has no start token")
        self._check_causal()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, without special ones that are not in them, int below the model's V.

        Raises
        ------
        ValueError
            If the tokenizer cannot read a text, or gives tokens that the model does not have.
        """
        try:
            tokens = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        except Exception as error:  # what tokenizers raises
            raise ValueError(
                f"the tokenizer of {self.config.model} cannot read the samples: {error}"
            ) from error
        largest = max((max(row) for row in tokens if row), default=0)
        if largest >= self._vocab_size:
            raise ValueError(
                f"the tokenizer of {self.config.model}: got token {largest}; "
                f"allowed: 0 to {self._vocab_size - 1}, those of the model"
            )
        return tokens

    def score(self, tokens: Sequence[Sequence[int]], *, progress: bool = False) -> dict[str, Any]:
        """Perplexity of tokenized samples.

        Parameters
        ----------
        tokens : sequence of sequences of int
            As `encode` gives them.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        dict
            Both averages, and all that they depend on.

        Raises
        ------
        ValueError
            If no sample has a token to score.
        """
        scored = self.nlls(tokens, progress=progress)
        room = self.max_length - (self.start is not None)
        cut = [max(len(row) - room, 0) for row in tokens]
        return {
            **averages(scored),
            "model": self.config.model,
            "model_commit": getattr(self.model.config, "_commit_hash", None),
            "precision": self.config.precision,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "device": self.config.device,
            "first_token_scored": self.start is not None,
            "start_token": None if self.start is None else self.tokenizer.convert_ids_to_tokens(self.start),
            "max_length": self.max_length,
            "samples_cut": sum(part > 0 for part in cut),
            "tokens_cut": sum(cut),
        }

    @torch.inference_mode()
    def nlls(self, tokens: Sequence[Sequence[int]], *, progress: bool = False) -> list[torch.Tensor]:
        """Negative log-likelihood in nats of every scored token, float64 [n] for each sample.

        The first token of a sample is scored only after a start token; tokens beyond `max_length` are
        not. Padding is on the right, behind all that a causal model may look at.
        """
        start = [] if self.start is None else [self.start]
        rows = [torch.tensor([*start, *row][: self.max_length], dtype=torch.int64) for row in tokens]
        # Samples of like length together: less padding. The result is in the order of the samples.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        order = [i for i in order if len(rows[i]) >= 2]
        result = [torch.empty(0, dtype=torch.float64)] * len(rows)
        size = self.config.batch
        parts = [order[first : first + size] for first in range(0, len(order), size)]
        with progress_bar(progress, len(order) / self._processes.count, "scoring", unit="sample") as bar:

            def score(part: list[int]) -> list[torch.Tensor]:
                bar.update(len(part))
                return self._batch_nlls([rows[i] for i in part])

            for part, scored in zip(parts, self._processes.share_out(parts, score), strict=True):
                for i, values in zip(part, scored, strict=True):
                    result[i] = values
        return result

    def _batch_nlls(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        padded = pad_sequence(rows, batch_first=True).to(self.config.device)
        lengths = torch.tensor([len(row) for row in rows], device=padded.device)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        logits = self.model(input_ids=padded, attention_mask=mask.long(), use_cache=False).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        # Sample by sample, without its padding: the logits of one at a time are copied to the wide dtype.
        return [
            cross_entropy(logits[i, : len(row) - 1].to(wide), padded[i, 1 : len(row)], reduction="none")
            .double()
            .cpu()
            for i, row in enumerate(rows)
        ]

    def _length(self) -> int:
        own = getattr(self.model.config, "max_position_embeddings", None)
        wanted = self.config.max_length
        if wanted is not None and own is not None and wanted > own:
            raise ValueError(f"max_length: got {wanted}; allowed: 2 to {own}, the longest of the model")
        return wanted or own or _DEFAULT_LENGTH

    @torch.inference_mode()
    def _check_causal(self) -> None:
        """Raise ValueError if another last token changes what is said of the tokens before it."""
        length = min(8, self.max_length)
        first = torch.arange(length)[None] % self._vocab_size
        second = first.clone()
        second[0, -1] = (second[0, -1] + 1) % self._vocab_size
        before, after = (
            self.model(input_ids=x.to(self.config.device)).logits[0, :-1] for x in (first, second)
        )
        # Shapes are the same, so that rounding is, too, or nearly.
        rounding = 16 * torch.finfo(before.dtype).eps * before.abs().max()
        if not (before - after).abs().max() <= rounding:
            raise ValueError(
                f"model: {self.config.model} looks at tokens that are to come; allowed: causal ones"
            )


def averages(nlls: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Both averages in use of the perplexity of samples.

    Parameters
    ----------
    nlls : sequence of torch.Tensor
        Negative log-likelihood of the scored tokens of each sample, float64 [n], n may be 0.

    Returns
    -------
    dict
        ``mean_over_samples``: mean over samples of exp(mean of its tokens), with its
        ``standard_error``; ``over_tokens``: exp(mean over all tokens of all samples);
        ``nll_per_token``: its logarithm, in nats. Samples without a scored token count in
        ``samples_unscored`` only.

    Raises
    ------
    ValueError
        If no sample has a scored token.
    """
    scored = [row for row in nlls if len(row)]
    if not scored:
        raise ValueError("no sample has two tokens: there is nothing to score without a start token")
    by_sample = torch.stack([row.mean() for row in scored]).exp()
    everything = torch.cat(scored)
    return {
        "mean_over_samples": float(by_sample.mean()),
        "standard_error": standard_error(by_sample),
        "over_tokens": float(everything.mean().exp()),
        "nll_per_token": float(everything.mean()),
        "samples_scored": len(scored),
        "samples_unscored": len(nlls) - len(scored),
        "tokens_scored": len(everything),
    }


def _load(config: PerplexityConfig) -> tuple[Any, Any]:
    transformers = require("transformers", extra="eval")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    looks_like_a_path = config.model.startswith((".", "/", "~")) or config.model.count("/") > 1
    if looks_like_a_path and not os.path.isdir(config.model):
        raise FileNotFoundError(f"model: there is no folder {config.model}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            config.model, dtype=DTYPES[config.precision]
        )
        model = model.to(config.device).eval()
    except Exception as error:  # of many kinds, and of many lines
        raise ValueError(
            f"model: {config.model!r} gives no causal language model with a tokenizer: {reason(error)}"
        ) from error
    return tokenizer, model
