"""The blocks of docs/coming-from.md against stand-ins of what they replace, in law and token for token.

The page's own text runs here, at sizes at which laws can be counted; faults are planted in that text.
"""

from __future__ import annotations

import re

import pytest
import torch
from clients import check_same_law
from laws import check_law
from test_docs import ROOT, source_of

PAGE = ROOT / "docs" / "coming-from.md"
SIZES = "B, L, V, MASK = 4, 32, 100, 100"
TEXT = PAGE.read_text()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def blocks(heading: str, sizes: str, faults: dict[str, str] | None = None) -> dict:
    """The names that the first blocks of the page and those of one section define, faults put in its text."""
    lines = TEXT.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith("## ")] + [len(lines)]
    start = next(number for number in places if lines[number] == f"## {heading}")
    end = next(number for number in places if number > start)
    source = source_of(PAGE).splitlines()
    first, section = "\n".join(source[: places[0]]), "\n".join(source[start:end])
    assert SIZES in first
    for old, new in (faults or {}).items():
        assert old in section
        section = section.replace(old, new)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        names: dict = {}
        exec(compile(first.replace(SIZES, f"B, L, V, MASK = {sizes}"), str(PAGE), "exec"), names)
        exec(compile(section, str(PAGE), "exec"), names)
    return names


# MDLM


def mdlm_half_way(faults: dict[str, str]) -> None:
    """The first four of the page's eight steps: masks are left, so that their number counts, too."""
    halved = {"levels[1:]": "levels[1:5]", "assert (tokens != MASK).all()": ""}
    names = blocks("MDLM", "40_000, 2, 3, 3", {**halved, **faults})
    tokens = torch.full((40_000, 2), 3)
    for alpha_t, alpha_s in zip(names["levels"], names["levels"][1:5], strict=False):
        tokens = names["before"](tokens, alpha_t, alpha_s)
    check_same_law(names["tokens"], tokens, 4)


def test_mdlm():
    mdlm_half_way({})


@pytest.mark.parametrize(
    "old, new",
    [("torch.full((B,), alpha_s)", "torch.full((B,), alpha_t)"), ("alpha_t / alpha_s,", "alpha_t,")],
)
def test_mdlm_fault(old, new):
    with pytest.raises(AssertionError):
        mdlm_half_way({old: new})


# SEDD


def staggered(alpha_t: float, alpha_s: float, data: torch.Tensor, token: int) -> torch.Tensor:
    """SEDD's row of probabilities at one token under uniform noise, of the true score: [V]."""
    size, kept = len(data), alpha_t / alpha_s
    marginal = alpha_t * data + (1 - alpha_t) / size
    score = marginal / marginal[token]
    undone = score / kept - (1 - kept) / kept * score.sum() / size  # of the noise between the two times
    transition = torch.full((size,), (1 - kept) / size)
    transition[token] += kept
    return undone * transition


def sedd_step(names: dict) -> None:
    """A step of the true score takes the law of one time to that of an earlier one."""
    data, count = torch.tensor([0.6, 0.25, 0.15, 0.0]), 80_000
    alpha_t, alpha_s = 0.3, 0.7
    tokens = torch.multinomial(alpha_t * data + (1 - alpha_t) / 4, count, replacement=True)
    rows = torch.stack([staggered(alpha_t, alpha_s, data, token) for token in range(4)])
    check_law(names["sample_categorical"](rows[tokens][None], step=3)[0], alpha_s * data + (1 - alpha_s) / 4)


def sedd_negative(names: dict) -> None:
    row = torch.tensor([0.5, -0.4, 0.2, 0.1])
    probs = row.expand(1, 80_000, 4).contiguous()
    for drawn in (names["before"](probs), names["sample_categorical"](probs, step=1)):
        check_law(drawn[0], row.clamp_min(0))


def test_sedd():
    names = blocks("SEDD", "4, 8, 4, 4")
    sedd_step(names)
    sedd_negative(names)


@pytest.mark.parametrize("old, new", [(".clamp_min(0)", ".abs()"), (".log(), None", ", None")])
def test_sedd_fault(old, new):
    names = blocks("SEDD", "4, 8, 4, 4", {old: new})
    with pytest.raises(AssertionError):
        sedd_negative(names)


# LLaDA, Dream, Fast-dLLM

UNMASKING = "LLaDA, Dream, Fast-dLLM"


def confident_by_hand(
    tokens: torch.Tensor, logits: torch.Tensor, mask: int, temperature: float
) -> torch.Tensor:
    """LLaDA's step for one token a sequence: a draw everywhere, the one most likely before temperature."""
    drawn = torch.distributions.Categorical(logits=logits.double() / temperature).sample()
    confidence = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
    best = confidence.where(tokens == mask, -torch.inf).argmax(1, keepdim=True)
    return tokens.scatter(1, best, drawn.gather(1, best))


def llada_step(names: dict) -> None:
    tokens = torch.full((60_000, 2), 3)
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, -3.0]]).expand(60_000, 2, 3).contiguous()
    proposal, score, masked = names["propose"](tokens, logits, 0, temperature=0.5)
    ours = names["commit"](tokens.clone(), proposal, score, count=1, eligible=masked, seed=0, step=0)
    check_same_law(ours, confident_by_hand(tokens, logits, 3, 0.5), 4)


def test_llada():
    llada_step(blocks(UNMASKING, "4, 32, 3, 3"))


@pytest.mark.parametrize(
    "old, new",
    [
        ('"raw_log_prob": log_prob', '"log_prob": log_prob'),
        ('"temperature": temperature', '"temperature": 0.6'),
    ],
)
def test_llada_fault(old, new):
    faults = {old: new, "while (tokens": "if (tokens", "assert torch.equal(tokens, twin)": ""}
    with pytest.raises(AssertionError):
        llada_step(blocks(UNMASKING, "4, 32, 3, 3", faults))


def half_masked(names: dict, count: int = 64) -> torch.Tensor:
    """Sequences with known tokens, which are surer than any mask."""
    tokens = torch.randint(names["V"], (count, names["L"]))
    tokens[torch.rand(tokens.shape) < 0.5] = names["MASK"]
    return tokens


def sure_by_hand(tokens: torch.Tensor, logits: torch.Tensor, mask: int, threshold: float) -> torch.Tensor:
    """Fast-dLLM: every mask of at least the threshold, and each sequence's surest."""
    tokens = tokens.clone()
    confidence, best = logits.softmax(-1).max(-1)
    for row, sequence in enumerate(tokens):
        places = (sequence == mask).nonzero()[:, 0]
        surest = places[confidence[row, places].argmax()]
        for place in places:
            if place == surest or confidence[row, place] >= threshold:
                tokens[row, place] = best[row, place]
    return tokens


def fast_dllm_step(names: dict, threshold: float) -> None:
    tokens = half_masked(names)
    logits = torch.randn(*tokens.shape, names["V"]) * 2
    logits[tokens != names["MASK"], 0] += 30.0
    expected = sure_by_hand(tokens, logits, names["MASK"], threshold)
    names["unmask_sure"](tokens, logits, 0, threshold)
    assert torch.equal(tokens, expected)


def test_fast_dllm():
    names = blocks(UNMASKING, "4, 32, 20, 20")
    for threshold in (0.3, 0.6, 0.999):
        fast_dllm_step(names, threshold)


def test_fast_dllm_fault():
    """The surest of all positions and not of the masks: what is known is surer, and nothing is taken."""
    old = "score.where(masked, -torch.inf).amax(1)"
    faults = {old: "score.where(masked, 0.0).amax(1)", "while (tokens": "if (tokens"}  # or the page loops on
    names = blocks(UNMASKING, "4, 32, 20, 20", faults)
    with pytest.raises(AssertionError):
        fast_dllm_step(names, 0.999)


def score_of(algorithm: str, known: dict) -> torch.Tensor:
    """What the page's table says of one of Dream's scores, computed from by-products."""
    code = re.search(rf"^\| `{algorithm}`.*?\| `(.*?)`", TEXT, re.MULTILINE)[1]
    return eval(code, {"torch": torch, **known})


def test_dream_scores():
    """Of its own filters, top-p first, and its own probabilities."""
    names = blocks(UNMASKING, "4, 32, 20, 20")
    tokens, logits = torch.full((32, 8), 20), torch.randn(32, 8, 20) * 2
    known = {name: torch.empty(32, 8) for name in ("raw_log_prob", "log_prob", "margin", "entropy")}
    step = names["glauber_step"]
    step(tokens.clone(), logits, None, seed=0, step=0, temperature=0.0, **known)
    top = logits.softmax(-1).topk(2).values
    margins = top[..., 0] - top[..., 1]
    torch.testing.assert_close(score_of("topk_margin", known), margins)
    assert not torch.equal(known["margin"].argsort(1), margins.argsort(1))  # of logits: another order
    torch.testing.assert_close(score_of("maskgit_plus", known).exp(), top[..., 0])
    step(
        tokens,
        logits,
        None,
        seed=0,
        step=0,
        temperature=0.8,
        top_p=0.8,
        top_k=5,
        filter_order="p_k_min",
        **known,
    )
    ordered, order = (logits / 0.8).sort(-1, descending=True)
    mass = ordered.softmax(-1)
    ordered[mass.cumsum(-1) - mass > 0.8] = -torch.inf
    ordered[..., 5:] = -torch.inf
    law = ordered.log_softmax(-1).gather(-1, order.argsort(-1))
    torch.testing.assert_close(known["log_prob"], law.gather(-1, tokens[..., None])[..., 0])
    tempered = torch.distributions.Categorical(logits=logits / 0.8).entropy()
    torch.testing.assert_close(score_of("entropy", known), -tempered)


def certain_step(names: dict) -> None:
    tokens = half_masked(names)
    logits = torch.randn(*tokens.shape, names["V"]) * 2
    entropy = (
        torch.distributions.Categorical(logits=logits).entropy().where(tokens == names["MASK"], torch.inf)
    )
    surest = entropy.topk(3, largest=False).indices
    expected = tokens.scatter(1, surest, logits.argmax(-1).gather(1, surest))
    names["unmask_certain"](tokens, logits, 0, count=3)
    assert torch.equal(tokens, expected)


def test_dream_entropy():
    certain_step(blocks(UNMASKING, "4, 32, 20, 20"))


@pytest.mark.parametrize(
    "old, new",
    [
        ("best, -entropy, count", "best, entropy, count"),
        ('"entropy": entropy}', '"entropy": entropy, "temperature": 0.0}'),
    ],
)
def test_dream_entropy_fault(old, new):
    names = blocks(UNMASKING, "4, 32, 20, 20", {old: new})
    with pytest.raises(AssertionError):
        certain_step(names)


# vLLM


def step_by_hand(hidden, weight, embedding, temperature, softcap, bound):
    """Canvas, likeliest tokens, entropies and mean embeddings, of logits and their softmax."""
    logits = softcap * torch.tanh(hidden @ weight.T / softcap) / temperature[:, None, None]
    probs = logits.softmax(-1)
    drawn = torch.multinomial(probs.flatten(0, 1), 1).view(hidden.shape[:2])
    entropy = torch.distributions.Categorical(probs=probs).entropy()
    ordered, order = entropy.sort(1)
    accepted = torch.zeros_like(entropy, dtype=torch.bool).scatter(
        1, order, ordered.cumsum(1) - ordered <= bound
    )
    noise = torch.randint(len(weight), drawn.shape)
    return torch.where(accepted, drawn, noise), logits.argmax(-1), entropy, probs @ embedding


def vllm_step(names: dict, count: int = 60_000) -> None:
    """Three positions, of which the bound takes two."""
    temperature = torch.full((count,), 0.7)
    hidden = (names["hidden_states"](torch.tensor([[1, 2, 0]])) / 5).expand(count, -1, -1).contiguous()
    embedding = names["embedding"][:3]
    known = step_by_hand(hidden[:1], names["weight"], embedding, temperature[:1], 3.0, 0.0)
    first, second, _ = known[2][0].sort().values.tolist()
    bound = first + second / 2
    wanted = step_by_hand(hidden, names["weight"], embedding, temperature, 3.0, bound)
    canvas, ids, steps = (
        torch.zeros(count, 3, dtype=torch.int64),
        torch.arange(count),
        torch.full((count,), 2),
    )
    found = names["after"](canvas, hidden, ids, steps, temperature, softcap=3.0, entropy_bound=bound)
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[3], wanted[3], rtol=1e-4, atol=1e-4)
    check_same_law(found[0], wanted[0], 3)


def test_vllm():
    names = blocks("vLLM", "4, 3, 3, 3")
    vllm_step(names)
    ids, steps, temperature = torch.arange(5), torch.tensor([3, 0, 9, 3, 1]), torch.linspace(0.4, 0.8, 5)
    canvas, hidden = torch.randint(3, (5, 3)), torch.randn(5, 3, 24) / 3
    batch = names["after"](canvas.clone(), hidden, ids, steps, temperature)[0]
    for row in range(5):
        one = slice(row, row + 1)
        alone = names["after"](canvas[one].clone(), hidden[one], ids[one], steps[one], temperature[one])[0]
        assert torch.equal(alone, batch[one])


@pytest.mark.parametrize(
    "old, new",
    [
        ("budget=entropy_bound", "budget=0.0"),
        ('"temperature": temperature, ', ""),
        ('"vocab_size": V}', '"vocab_size": V - 1}'),
    ],
)
def test_vllm_fault(old, new):
    names = blocks("vLLM", "4, 3, 3, 3", {old: new})
    with pytest.raises(AssertionError):
        vllm_step(names)
