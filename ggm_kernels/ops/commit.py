"""The public `commit`: schema, checks, fake, backends."""

from __future__ import annotations

import math
from numbers import Real

import torch

from ggm_kernels import checks, randomness
from ggm_kernels.arguments.commit import Choice
from ggm_kernels.backends import checks_values, kernel, requested
from ggm_kernels.noise import NoiseLaw, check_noise, drawn_by
from ggm_kernels.ops.library import refuse_shared_copies, register, writing
from ggm_kernels.ops.plans import NOT_RUN, Plans, look

_SCHEMA = (
    "commit(Tensor(a!) tokens, Tensor proposal, Tensor score, SymInt? count, Tensor? count_tensor, "
    "float? threshold, Tensor? threshold_tensor, float? budget, Tensor? budget_tensor, Tensor? eligible, "
    "bool noises_rest, Tensor? noise_table, SymInt? mask_id, SymInt vocab_size, SymInt seed, SymInt step, "
    "Tensor? step_tensor, Tensor? sample_ids, Tensor(b!)? accepted, str backend) -> ()"
)
_MOST = 2**63 - 1
_READ = ("count", "threshold", "budget", "eligible", "step", "sample_ids")  # besides proposal and score


def commit(
    tokens: torch.Tensor,
    proposal: torch.Tensor,
    score: torch.Tensor,
    *,
    count: int | torch.Tensor | None = None,
    threshold: float | torch.Tensor | None = None,
    budget: float | torch.Tensor | None = None,
    eligible: torch.Tensor | None = None,
    rest: str = "keep",
    noise: NoiseLaw | None = None,
    vocab_size: int | None = None,
    seed: int,
    step: int | torch.Tensor,
    sample_ids: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Write a proposal where its score is best, in place: the unmasking step of masked diffusion samplers.

    The eligible positions of a sequence are put in order, by score from the largest on and by position where
    scores are equal. Accepted is the longest prefix of that order which every criterion given allows; without
    any, all of it. With `count` alone, and as many eligible, it equals
    ``index = score.masked_fill(~eligible, -inf).topk(count).indices``;
    ``tokens.scatter_(1, index, proposal.gather(1, index))``.

    Parameters
    ----------
    tokens : torch.Tensor
        int32 or int64, shape [B, L]; written in place, so with memory of its own. Neither tokens nor proposal
        are looked at, so a mask may have any id.
    proposal : torch.Tensor
        The tokens to take, int32 or int64, shape [B, L].
    score : torch.Tensor
        float32, bfloat16 or float16, shape [B, L]. NaN is never accepted.
    count : int or torch.Tensor, optional
        So many are accepted at most, 0 or more: an int, or an integer tensor of shape [] or [B].
    threshold : float or torch.Tensor, optional
        Scores of at least so much are accepted: a float, or a floating tensor of shape [] or [B]; not NaN.
    budget : float or torch.Tensor, optional
        The entropy bound, for a score that is minus an entropy: a position is accepted if the costs, -score,
        of those before it in the order sum to `budget` or less, so the first one always is. 0 or more, inf
        allowed: a float, or a floating tensor of shape [] or [B]. A score of inf costs nothing.
    eligible : torch.Tensor, optional
        bool [B, L]: positions that may be accepted, and that `rest` is about; None means all.
    rest : str
        What becomes of eligible positions that are not accepted: "keep" leaves them, "noise" draws them anew.
    noise : NoiseLaw, optional
        Law of noise tokens, for rest="noise"; None is uniform over `vocab_size` tokens.
    vocab_size : int, optional
        Number of tokens V of the noise; needed for rest="noise" without a law.
    seed : int
        Key of the noise, 0 to 2**64 - 1.
    step : int or torch.Tensor
        Coordinate of the noise, 0 to 2**32 - 1: give every step another one. A 0-d int64 tensor may change
        under a CUDA graph.
    sample_ids : torch.Tensor, optional
        Coordinate of each sequence, integer [B], values in [0, 2**40). Default 0, 1, .., B - 1.
    accepted : torch.Tensor, optional
        bool [B, L], filled with where the proposal was taken.
    backend : str, optional
        "reference", "cpu", "cuda" or "triton"; None is the best that is there.

    Returns
    -------
    torch.Tensor
        `tokens` itself.

    Raises
    ------
    TypeError, ValueError
        For an argument of wrong type, shape, device or range; nothing is written. Values inside tensors are
        checked on CPU, and on GPU if GGM_KERNELS_CHECK=1; unchecked, a negative count or budget and a limit
        that is NaN accept nothing.

    Notes
    -----
    Bit-identical on every backend. Limits are taken as float32, as scores are. Costs are summed as integer
    multiples of a power of two, 2**(e + bits(L) - 61) where the row's largest score above 0 and its largest
    cost are below 2**(e + 1); costs beyond the budget and all scores above 0 count as little more than these,
    since nothing is accepted behind them. The sum has no order, and is exact but for what a cost has below
    that unit. Selection is by the bits of the scores, without a sort. The noise at a position is a function
    of (seed, step, sample id, position) on a stream of its own. Sources: count, LLaDA (arXiv 2502.09992) and
    MaskGIT (arXiv 2202.04200); threshold, Fast-dLLM (arXiv 2505.22618); budget, EB-sampler
    (arXiv 2505.24857).
    """
    given = {
        "tokens": tokens, "accepted": accepted, "proposal": proposal, "score": score, "eligible": eligible,
        "count": count, "threshold": threshold, "budget": budget, "sample_ids": sample_ids,
    }  # fmt: skip
    looks = look((*given.values(), rest, noise, vocab_size, backend))
    if _PLANS.run(looks, given, seed, step) != NOT_RUN:
        return tokens
    checks.tensor("tokens", tokens, dtypes=checks.INTEGERS, dims=(2,))
    checks.writable("tokens", tokens)
    checks.tensor("proposal", proposal, dtypes=checks.INTEGERS, shapes=[tokens.shape])
    checks.same_device("proposal", proposal, "tokens", tokens)
    checks.tensor("score", score, dtypes=checks.FLOATS, shapes=[tokens.shape])
    checks.same_device("score", score, "tokens", tokens)
    limits = (
        *_check_count(count, tokens),
        *_check_limit("threshold", threshold, tokens, low=-math.inf),
        *_check_limit("budget", budget, tokens, low=0.0),
    )
    _check_mask("eligible", eligible, tokens)
    if accepted is not None:
        _check_mask("accepted", accepted, tokens)
        checks.writable("accepted", accepted)
    source = _check_rest(rest, noise, vocab_size, tokens.device)
    seed_and_step = seed, step
    seed = randomness.check_seed(seed)
    step, step_tensor = randomness.check_step(step, tokens)
    ids, sample_ids = sample_ids, randomness.check_sample_ids(sample_ids, tokens)
    copies = (
        ("count", count, limits[1]), ("threshold", threshold, limits[3]), ("budget", budget, limits[5]),
        ("sample_ids", ids, sample_ids),
    )  # fmt: skip
    refuse_shared_copies({"tokens": tokens, "accepted": accepted}, copies)
    choice = (*limits, eligible, *source, seed, step, step_tensor, sample_ids, accepted)
    _op(tokens, proposal, score.detach(), *choice, requested(backend))
    _PLANS.remember(looks, *seed_and_step, backend, lambda native: native.commit(given, _choice_of(*choice)))
    return tokens


def _check_count(count, tokens: torch.Tensor) -> tuple[int | None, torch.Tensor | None]:
    if count is None:
        return None, None
    if not isinstance(count, torch.Tensor):
        return checks.integer("count", count, low=0, high=2**63), None
    _check_per_row("count", count, checks.INTEGERS, tokens)
    return None, count.to(torch.int64)


def _check_limit(name: str, limit, tokens: torch.Tensor, *, low: float):
    if limit is None:
        return None, None
    if isinstance(limit, torch.Tensor):
        _check_per_row(name, limit, (*checks.FLOATS, torch.float64), tokens)
        rounded = limit.detach().to(torch.float32)
        if limit.dtype == torch.float64 and low == 0.0:  # what is negative stays so
            rounded = torch.where((limit < 0) & (rounded == 0), -(2.0**-126), rounded)
        return None, rounded
    if isinstance(limit, bool) or not isinstance(limit, Real):
        raise TypeError(f"{name}: got {type(limit).__name__}; allowed: a float or a torch.Tensor")
    if not float(limit) >= low:
        raise ValueError(f"{name}: got {limit}; allowed: {low:g} <= {name} <= inf")
    return float(limit), None


def _check_per_row(name: str, limit: torch.Tensor, dtypes, tokens: torch.Tensor) -> None:
    checks.tensor(name, limit, dtypes=dtypes, shapes=[torch.Size(()), tokens.shape[:1]])
    checks.same_device(name, limit, "tokens", tokens)


def _check_mask(name: str, mask: torch.Tensor | None, tokens: torch.Tensor) -> None:
    if mask is not None:
        checks.tensor(name, mask, dtypes=(torch.bool,), shapes=[tokens.shape])
        checks.same_device(name, mask, "tokens", tokens)


def _check_rest(
    rest: str, noise: NoiseLaw | None, vocab_size: int | None, device: torch.device
) -> tuple[bool, torch.Tensor | None, int | None, int]:
    """Whether the rest is noised, and from what: alias table, mask, vocabulary size."""
    if not isinstance(rest, str):
        raise TypeError(f"rest: got {type(rest).__name__}; allowed: a str")
    if rest not in ("keep", "noise"):
        raise ValueError(f"rest: got {rest!r}; allowed: 'keep' or 'noise'")
    if vocab_size is not None:
        vocab_size = checks.integer("vocab_size", vocab_size, low=1, high=randomness.MAX_VOCAB + 1)
    elif isinstance(noise, NoiseLaw):
        vocab_size = noise.vocab_size
    elif rest == "noise":
        raise ValueError(
            "vocab_size: got None; allowed: the number of tokens, for rest='noise' without a law"
        )
    check_noise(noise, vocab_size or 0)
    if rest == "keep":
        return False, None, None, vocab_size or 1
    return True, *drawn_by(noise, device), vocab_size or 1


_PLANS = Plans("commit")


def _choice_of(
    count, count_tensor, threshold, threshold_tensor, budget, budget_tensor, eligible, noises_rest,
    noise_table, mask_id, vocab_size, seed, step, step_tensor, sample_ids, accepted,
) -> Choice:  # fmt: skip
    return Choice(
        count if count_tensor is None else count_tensor,
        threshold if threshold_tensor is None else threshold_tensor,
        budget if budget_tensor is None else budget_tensor,
        eligible,
        noises_rest,
        noise_table,
        mask_id,
        vocab_size,
        seed,
        step if step_tensor is None else step_tensor,
        sample_ids,
        accepted,
    )


def _run(tokens, proposal, score, *choice_and_backend):
    *given, backend = choice_and_backend
    name, run = kernel("commit", backend, tokens.device)
    choice = _choice_of(*given)
    accepted = choice.accepted
    if name != "cpu" and checks_values(tokens.device):
        _check_values(choice)
    written = {"tokens": tokens} if accepted is None else {"tokens": tokens, "accepted": accepted}
    read = {name: value for name in _READ if isinstance(value := getattr(choice, name), torch.Tensor)}
    with writing(written, {"proposal": proposal, "score": score, **read}):
        if run(tokens, proposal, score, choice) is False:  # the cpu kernel met a bad value: name it
            _check_values(choice)
            raise AssertionError("the cpu kernel refused values that the checks accept")


def _check_values(choice: Choice) -> None:
    step = choice.step if isinstance(choice.step, torch.Tensor) else None
    randomness.check_coordinate_values(step, choice.sample_ids)
    for name, low, high in (("count", 0, _MOST), ("threshold", -math.inf, math.inf), ("budget", 0, math.inf)):
        limit = getattr(choice, name)
        if isinstance(limit, torch.Tensor):
            checks.values_in_range(name, limit, low, high, ValueError, closed=True)


def _fake(*arguments):
    return None


_op = register(_SCHEMA, _run, _fake)
