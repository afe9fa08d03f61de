"""The public `corrupt` and `random_tokens`: schema, checks, fake, backends."""

from __future__ import annotations

from numbers import Real

import torch

from ggm_kernels import checks, randomness
from ggm_kernels.backends import checks_values, kernel, requested
from ggm_kernels.noise import NoiseLaw, check_noise, drawn_by
from ggm_kernels.ops.library import register
from ggm_kernels.ops.plans import NOT_RUN, Plans, look
from ggm_kernels.randomness import Stream

_SCHEMA = (
    "corrupt(Tensor tokens, Tensor keep_prob, SymInt vocab_size, SymInt seed, SymInt step, "
    "Tensor? step_tensor, Tensor? sample_ids, Tensor? frozen, Tensor? noise_table, int stream, str backend, "
    "SymInt? mask_id=None) "
    "-> (Tensor, Tensor)"
)


def corrupt(
    tokens: torch.Tensor,
    keep_prob: float | torch.Tensor,
    vocab_size: int,
    *,
    seed: int,
    step: int | torch.Tensor = 0,
    sample_ids: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    noise: NoiseLaw | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise a batch of token sequences: keep each token with its probability, else draw a noise token.

    Equals, in law, ``is_signal = torch.rand(B, L) < keep_prob``;
    ``noisy = torch.where(is_signal, tokens, torch.randint(vocab_size, (B, L)))``.

    Parameters
    ----------
    tokens : torch.Tensor
        Token ids in [0, vocab_size), int32 or int64, shape [B, L]. With ``NoiseLaw.absorbing(V, V)`` also V.
    keep_prob : float or torch.Tensor
        Probability of keeping in [0, 1]: a float, or float64, float32, bfloat16 or float16 of shape [], [B],
        [B, 1] or [B, L]. It is taken as float32.
    vocab_size : int
        Number of tokens V, 1 to 2**31 - 1.
    seed : int
        Key of the noise, 0 to 2**64 - 1.
    step : int or torch.Tensor
        Coordinate of the noise, 0 to 2**32 - 1; a 0-d int64 tensor may change under a CUDA graph.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence, integer [B], values in [0, 2**40). Default 0, 1, .., B - 1. Give the
        ids of the samples in the data set, and the noise does not depend on batch size, order or rank.
    frozen : torch.Tensor, optional
        bool [B, L]: positions that are always kept.
    noise : NoiseLaw, optional
        Law of noise tokens over V tokens; None is uniform. ``NoiseLaw.absorbing(V, mask_id)`` masks.
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    noisy : torch.Tensor
        Noised tokens, dtype and shape of `tokens`.
    is_signal : torch.Tensor
        bool [B, L]: True where the token was kept (or frozen). A noise draw that happens to equal the old
        token is noise: False.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or range.
    IndexError
        For a token outside its range, on CPU, and on GPU if GGM_KERNELS_CHECK=1.

    Notes
    -----
    Bit-identical on every backend: the outcome at a position is a function of (seed, step, sample id,
    position) alone. Keeping happens with probability ``floor(keep_prob * 2**32) / 2**32``; a uniform noise
    token has its probability 1 / V within 2**-32. Source: forward process of arXiv 2405.17035 in closed form
    (our derivation, docs/mathematics.md).
    """
    return _call(
        tokens,
        keep_prob,
        vocab_size,
        seed,
        step,
        sample_ids,
        frozen,
        noise,
        Stream.CORRUPT,
        backend,
    )


def random_tokens(
    sample_ids: torch.Tensor,
    length: int,
    vocab_size: int,
    *,
    stream: Stream,
    seed: int,
    step: int | torch.Tensor = 0,
    noise: NoiseLaw | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Draw tokens from the noise law at logical coordinates, on a stream of their own.

    For what a model draws besides corruption: initial states, noise candidates, times, visit orders.

    Parameters
    ----------
    sample_ids : torch.Tensor
        Coordinate of each sequence, int64 [B], values in [0, 2**40).
    length : int
        Tokens per sequence L; token i has position coordinate i.
    vocab_size : int
        Tokens are drawn from [0, vocab_size), 1 to 2**31 - 1.
    stream : Stream
        Which use this is; never one that an op draws from: `CORRUPT`, `RACE`, `KEEP`, `COMMIT`.
    seed, step, noise, backend
        As in `corrupt`.

    Returns
    -------
    torch.Tensor
        int64 [B, L].

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or range.
    """
    if Stream(stream) in randomness.STREAMS_OF_OPS:
        raise ValueError(f"stream: got {Stream(stream).name}; allowed: a stream that no op draws from itself")
    checks.tensor("sample_ids", sample_ids, dtypes=checks.INTEGERS, dims=(1,))
    length = checks.integer("length", length, low=0, high=randomness.MAX_POSITION)
    batch, device = sample_ids.shape[0], sample_ids.device
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
    noisy, _ = _call(tokens, 0.0, vocab_size, seed, step, sample_ids, None, noise, Stream(stream), backend)
    return noisy


_PLANS = Plans("corrupt")
_SMALL = 2**18  # tokens; more take so long that checks do not count, and their results huge pages


def _call(tokens, keep_prob, vocab_size, seed, step, sample_ids, frozen, noise, stream, backend):
    given = {"tokens": tokens, "keep_prob": keep_prob, "sample_ids": sample_ids, "frozen": frozen}
    is_small = isinstance(tokens, torch.Tensor) and tokens.numel() <= _SMALL
    looks = look((*given.values(), vocab_size, noise, int(stream), backend)) if is_small else None
    if _PLANS.has(looks):
        noisy, is_signal = torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.bool)
        if _PLANS.run(looks, given | {"noisy": noisy, "is_signal": is_signal}, seed, step) != NOT_RUN:
            return noisy, is_signal
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    keep_prob = _check_keep_prob(keep_prob, tokens)
    vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_VOCAB + 1)
    seed_and_step = seed, step
    seed = randomness.check_seed(seed)
    step, step_tensor = randomness.check_step(step, tokens)
    sample_ids = randomness.check_sample_ids(sample_ids, tokens)
    frozen = checks.boolean_mask("frozen", frozen, tokens)
    check_noise(noise, vocab_size)
    noise_table, mask_id = drawn_by(noise, tokens.device)
    keep_prob = keep_prob.contiguous()  # [], [B] or [B, L]
    noisy, is_signal = _op(
        tokens.contiguous(),
        keep_prob,
        vocab_size,
        seed,
        step,
        step_tensor,
        sample_ids,
        frozen,
        noise_table,
        int(stream),
        requested(backend),
        mask_id,
    )
    if looks is not None:
        results = {"noisy": noisy, "is_signal": is_signal}
        rest = vocab_size, seed, step, sample_ids, frozen, noise_table, mask_id, int(stream)
        _PLANS.remember(
            looks, *seed_and_step, backend, lambda native: native.corrupt(given | results, keep_prob, *rest)
        )
    return noisy, is_signal


def _check_keep_prob(keep_prob: float | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    if isinstance(keep_prob, Real):
        value = checks.number("keep_prob", keep_prob, low=0.0, high=1.0)
        return torch.full((), value, dtype=torch.float32, device=tokens.device)
    if not isinstance(keep_prob, torch.Tensor):
        raise TypeError(f"keep_prob: got {type(keep_prob).__name__}; allowed: a float or a torch.Tensor")
    batch = tokens.shape[:1]
    shapes = [torch.Size(()), batch, (*batch, 1), tokens.shape]
    checks.tensor("keep_prob", keep_prob, dtypes=(*checks.FLOATS, torch.float64), shapes=shapes)
    checks.same_device("keep_prob", keep_prob, "tokens", tokens)
    if keep_prob.dim() == 2 and keep_prob.shape[1] == 1:
        keep_prob = keep_prob[:, 0]
    return keep_prob.detach()


def _run(
    tokens,
    keep_prob,
    vocab_size,
    seed,
    step,
    step_tensor,
    sample_ids,
    frozen,
    noise_table,
    stream,
    backend,
    mask_id=None,
):
    name, run = kernel("corrupt", backend, tokens.device)
    step = step if step_tensor is None else step_tensor
    # 1 + 1e-9 in float64 is no probability, but is 1 in float32: what the cpu kernel sees is too late.
    sees_values = name == "cpu" and keep_prob.dtype is not torch.float64
    if not sees_values and checks_values(tokens.device):
        _check_values(tokens, keep_prob, vocab_size, mask_id, step_tensor, sample_ids)
    result = run(
        tokens,
        keep_prob.to(torch.float32),
        vocab_size,
        seed,
        step,
        sample_ids,
        frozen,
        noise_table,
        mask_id,
        stream,
    )
    if result is None:  # the cpu kernel met a bad value: name it
        _check_values(tokens, keep_prob, vocab_size, mask_id, step_tensor, sample_ids)
        raise AssertionError("the cpu kernel refused values that the checks accept")
    return result


def _check_values(tokens, keep_prob, vocab_size, mask_id, step, sample_ids) -> None:
    randomness.check_coordinate_values(step, sample_ids)
    checks.values_in_range("keep_prob", keep_prob, 0.0, 1.0, ValueError, closed=True)
    # A mask beside the tokens of the network is one of those that are noised.
    bound = vocab_size + (mask_id == vocab_size)
    checks.values_in_range("tokens", tokens, 0, bound, IndexError)


def _fake(
    tokens,
    keep_prob,
    vocab_size,
    seed,
    step,
    step_tensor,
    sample_ids,
    frozen,
    noise_table,
    stream,
    backend,
    mask_id=None,
):
    return torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.bool)


_op = register(_SCHEMA, _run, _fake)
