"""Our schedulers against those of diffusers: equal where nothing is drawn, of one law where something is."""

import copy

import pytest
import torch
from clients import check_same_law, generator, library_or_skip
from laws import check_law

diffusers = library_or_skip("diffusers")

from ggm_kernels.integrations import diffusers as ours  # noqa: E402

NAMES = ["BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"]
B, L, V, D = 3, 16, 300, 12


def pair(name: str, **config):
    """Theirs and ours of one configuration."""
    theirs = getattr(diffusers, name)(**config)
    return theirs, getattr(ours, name).from_config(theirs.config)


def factors(seed: int = 0):
    """Hidden states [B, L, D], weight [V, D], and the tokens that stand there [B, L]."""
    noise = generator(seed)
    return (
        torch.randn(B, L, D, generator=noise),
        torch.randn(V, D, generator=noise),
        torch.randint(V, (B, L), generator=noise),
    )


def logits_of(hidden, weight, softcap=None):
    logits = hidden @ weight.T
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


# Configurations


@pytest.mark.parametrize("name", NAMES)
def test_configurations_go_both_ways(name, caplog, tmp_path):
    config = {"num_inference_steps": 7}
    theirs, mine = pair(name, **config)
    assert isinstance(mine, type(theirs))  # what a pipeline asks
    assert mine.config.num_inference_steps == 7
    back = type(theirs).from_config(mine.config)
    assert type(back) is type(theirs)
    public = lambda scheduler: {k: v for k, v in scheduler.config.items() if not k.startswith("_")}  # noqa: E731
    assert public(back).items() >= public(theirs).items()
    mine.save_pretrained(tmp_path)
    assert public(type(theirs).from_pretrained(tmp_path)).items() >= public(theirs).items()
    assert not caplog.records
    assert torch.equal(mine.timesteps, theirs.timesteps)


# Entropy bound


@pytest.mark.parametrize("seed", range(20))
def test_the_entropy_bound_accepts_the_same(seed):
    hidden, weight, sample = factors(seed)
    theirs, mine = pair("EntropyBoundScheduler", entropy_bound=0.3 * seed, num_inference_steps=5)
    logits, step = logits_of(hidden, weight), seed % 5
    expected = theirs.step(logits, step, sample)
    given = mine.step(logits, torch.tensor(step), sample)
    assert torch.equal(given.accepted_index, expected.accepted_index)
    assert torch.equal(given.pred_logits, expected.pred_logits)
    assert torch.equal(given.prev_sample[given.accepted_index], given.sampled_tokens[given.accepted_index])
    probs = (logits / mine._temperature(step)).softmax(-1).gather(-1, given.sampled_tokens[..., None])[..., 0]
    torch.testing.assert_close(given.sampled_probs, probs)
    assert given.keys() == expected.keys()


def test_a_wrong_bound_accepts_others():
    hidden, weight, sample = factors()
    theirs, mine = pair("EntropyBoundScheduler", entropy_bound=2.0)
    logits = logits_of(hidden, weight)
    expected = theirs.step(logits, 0, sample).accepted_index
    assert not torch.equal(mine.step(logits, 0, sample, entropy_bound=6.0).accepted_index, expected)


def test_entropy_bound_tuples_and_outputs_hold_the_quotient():
    hidden, weight, sample = factors()
    theirs, mine = pair("EntropyBoundScheduler")
    logits = logits_of(hidden, weight)
    expected = theirs.step(logits, 3, sample, return_dict=False)
    given = mine.step(logits, 3, sample, return_dict=False)
    assert len(given) == len(expected) and torch.equal(given[4], expected[4])
    for look in (lambda o: o["pred_logits"], lambda o: o[4], lambda o: dict(o.items())["pred_logits"]):
        assert torch.equal(look(mine.step(logits, 3, sample)), expected[4])
    flat, _ = torch.utils._pytree.tree_flatten(mine.step(logits, 3, sample))
    assert torch.equal(flat[4], expected[4])


def test_the_entropy_bound_divides_no_logits_before_they_are_asked_for():
    """Nothing of [B, L, V] is made: what is asked for late is of the logits as they are then."""
    hidden, weight, sample = factors()
    logits = logits_of(hidden, weight)
    output = pair("EntropyBoundScheduler")[1].step(logits, 3, sample)
    assert not any(torch.is_tensor(value) and value.shape == logits.shape for value in vars(output).values())
    _ = output.prev_sample, output.accepted_index, list(output.keys())
    logits.zero_()
    assert (output.pred_logits == 0).all() and output["pred_logits"] is output.pred_logits


def test_entropy_bound_law():
    """Tokens follow softmax(logits / temperature), and uniform noise stands where they are not accepted."""
    logits = torch.tensor([[[3.0, 0.0, -1.0, 0.5, 0.0], [0.2, 0.0, 0.4, -0.3, 0.1]]]).expand(20_000, 2, 5)
    sample = torch.zeros(20_000, 2, dtype=torch.int64)
    theirs, mine = pair("EntropyBoundScheduler", entropy_bound=0.1)
    given = mine.step(logits, 0, sample, generator=generator(1))
    assert given.accepted_index[0].tolist() == [True, False]
    check_law(given.prev_sample[:, 0], (logits[0, 0] / 0.8).softmax(0))
    check_law(given.sampled_tokens[:, 1], (logits[0, 1] / 0.8).softmax(0))
    check_law(given.prev_sample[:, 1], torch.ones(5))
    expected = theirs.step(logits, 0, sample, generator=generator(1))
    check_same_law(given.prev_sample, expected.prev_sample, 5)
    with pytest.raises(AssertionError):  # another temperature
        check_same_law(given.prev_sample, theirs.step(logits, 24, sample).prev_sample, 5)


# Discrete DDIM


@pytest.mark.parametrize("step", [0, 3, 7])
def test_ddim_without_chance_is_theirs(step):
    """The last step takes the likeliest tokens; what is drawn, and its probability, in every step."""
    hidden, weight, sample = factors(step)
    theirs, mine = pair("DiscreteDDIMScheduler", num_inference_steps=8)
    logits = logits_of(hidden, weight)
    given, expected = mine.step(logits, step, sample), theirs.step(logits, step, sample)
    assert torch.equal(given.sampled_tokens, expected.sampled_tokens)
    torch.testing.assert_close(given.sampled_probs, expected.sampled_probs)
    assert given.pred_logits is logits
    if step == 7:
        assert torch.equal(given.prev_sample, expected.prev_sample)


LOGITS = torch.tensor([[1.0, -0.5, 0.3, 0.0], [0.1, 2.0, 0.0, -1.0]])
PRESENT = torch.tensor([0, 3])
MANY = 20_000


def posterior(p0: torch.Tensor, present: int, alpha_t: float, alpha_s: float) -> torch.Tensor:
    """q(x_s | x_t = present, x0) of uniform diffusion with a law in the place of x0."""
    size, survival = len(p0), alpha_t / alpha_s
    likelihood = torch.full((size,), (1 - survival) / size)
    likelihood[present] += survival
    weights = likelihood * (alpha_s * p0 + (1 - alpha_s) / size)
    return weights / weights.sum()


def many_rows():
    return LOGITS.expand(MANY, 2, 4), PRESENT.expand(MANY, 2)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_ddim_law_averaged(step):
    logits, sample = many_rows()
    theirs, mine = pair("DiscreteDDIMScheduler", num_inference_steps=5)
    laws = []
    for position in range(2):
        p0 = (LOGITS[position] / 0.7).softmax(0)
        each = [posterior(one, int(PRESENT[position]), step / 5, (step + 1) / 5) for one in torch.eye(4)]
        laws.append(p0 @ torch.stack(each))
    for scheduler in (mine, theirs):
        drawn = scheduler.step(logits, step, sample, temperature=0.7, generator=generator(1)).prev_sample
        for position in range(2):
            check_law(drawn[:, position], laws[position])
    off = mine.step(logits, (step + 2) % 5, sample, temperature=0.7, generator=generator(1)).prev_sample
    with pytest.raises(AssertionError):  # another step
        for position in range(2):
            check_law(off[:, position], laws[position])


@pytest.mark.parametrize("step", [0, 2, 4])
def test_ddim_law_plug_in(step):
    logits, sample = many_rows()
    mine = ours.PlugInDDIMScheduler.from_config(diffusers.DiscreteDDIMScheduler(num_inference_steps=5).config)
    drawn = mine.step(logits, step, sample, temperature=1.0, generator=generator(2))
    for position in range(2):
        p0 = LOGITS[position].softmax(0)
        law = posterior(p0, int(PRESENT[position]), step / 5, (step + 1) / 5)
        check_law(drawn.prev_sample[:, position], law)
    if step == 2:
        averaged = ours.DiscreteDDIMScheduler(num_inference_steps=5)
        other = averaged.step(logits, step, sample, temperature=1.0, generator=generator(2)).prev_sample
        with pytest.raises(AssertionError):  # the other convention
            check_same_law(drawn.prev_sample, other, 4)


@pytest.mark.parametrize(
    "selection", ["lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random"]
)
def test_corrector_law(selection):
    """Positions and tokens, in one: the law of the corrected sequence is theirs."""
    theirs, mine = pair(
        "DiscreteDDIMScheduler",
        num_inference_steps=5,
        corrector_selection=selection,
        corrector_selection_tau=0.4,
    )
    logits, sample = many_rows()
    expected = theirs.step_correct(logits, 1, sample, generator=generator(1))
    given = mine.step_correct(logits, 1, sample, generator=generator(1))
    check_same_law(given.prev_sample, expected.prev_sample, 4)
    assert given.sampled_tokens.shape == given.sampled_probs.shape == (MANY, 1)
    with pytest.raises(AssertionError):  # the noise of another step
        check_same_law(mine.step_correct(logits, 3, sample).prev_sample, expected.prev_sample, 4)
    if selection != "random":
        flat = ours.DiscreteDDIMScheduler.from_config(theirs.config, corrector_selection_tau=5.0)
        with pytest.raises(AssertionError):  # positions chosen with less regard to doubt
            check_same_law(flat.step_correct(logits, 1, sample).prev_sample, expected.prev_sample, 4)


def test_corrector_conditional():
    """All positions drawn anew: each from alpha p0 + (1 - alpha) / V, p0 leave-one-out."""
    logits, sample = many_rows()
    mine = ours.DiscreteDDIMScheduler(num_inference_steps=5, corrector_k=2)
    output = mine.step_correct(logits, 1, sample, generator=generator(4))
    for position in range(2):
        loo = LOGITS[position].clone()
        loo[PRESENT[position]] -= torch.log1p(torch.tensor(4 * 0.4 / 0.6))
        law = 0.4 * loo.softmax(0) + 0.6 / 4
        check_law(output.prev_sample[:, position], law)
        drawn = output.prev_sample[:, position]
        assert torch.isin(law[drawn], law).all()
    probs = output.sampled_probs.sort(1).values
    assert ((probs > 0) & (probs < 1)).all()


# Block refinement


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("editing", [None, 0.3])
def test_block_refinement_of_masks_is_theirs(seed, editing):
    hidden, weight, sample = factors(seed)
    mask = V - 1
    sample = torch.where(torch.rand(B, L, generator=generator(seed)) < 0.2 * (seed % 5), mask, sample)
    theirs, mine = pair(
        "BlockRefinementScheduler",
        threshold=0.15 * (seed % 4),
        editing_threshold=editing,
        num_inference_steps=5,
    )
    logits = logits_of(hidden, weight) * 0.7
    prompt = torch.arange(L) < 3
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(5, block_length=L)
    given, expected = (
        scheduler.step(logits, seed, sample, mask_token_id=mask, prompt_mask=prompt)
        for scheduler in (mine, theirs)
    )
    for key in expected:
        torch.testing.assert_close(given[key], expected[key], rtol=1e-5, atol=1e-6)


def test_block_refinement_of_noise_commits_and_edits_as_theirs():
    """Whole blocks: theirs noises by another generator, so each step gets the sample that theirs made."""
    theirs, mine = pair(
        "BlockRefinementScheduler", threshold=0.6, editing_threshold=0.5, num_inference_steps=4
    )
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(4, block_length=L)
    sample = factors()[2]
    for step in range(4):
        hidden, weight, _ = factors(step)
        logits = logits_of(hidden, weight) * 0.5
        expected, given = (
            scheduler.step(logits, step, sample, generator=generator(step)) for scheduler in (theirs, mine)
        )
        for key in ("transfer_index", "editing_transfer_index", "sampled_tokens"):
            assert torch.equal(given[key], expected[key])
        assert torch.equal(mine._committed, theirs._committed)
        kept = mine._committed
        assert torch.equal(given.prev_sample[kept], expected.prev_sample[kept])
        assert kept.all() or not torch.equal(given.prev_sample[~kept], sample[~kept])
        sample = expected.prev_sample
    assert mine._committed.all()


@pytest.mark.parametrize("mask", [None, 4])
def test_block_refinement_law(mask):
    logits = torch.tensor([[1.0, 0.2, -0.4, 0.5, -9], [0.0, 0.3, 0.1, -0.2, -9], [2.0, 0.0, 0.0, 0.0, -9]])
    logits, options = logits.expand(4000, 3, 5), {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
    theirs, mine = pair("BlockRefinementScheduler", threshold=0.9, num_inference_steps=3)
    start = torch.full((4000, 3), 0 if mask is None else mask)
    drawn = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(3, block_length=3)
        drawn.append(
            scheduler.step(
                logits, 1, start, mask_token_id=mask, generator=generator(5), **options
            ).prev_sample
        )
    check_same_law(*drawn, 5)
    hotter = mine.step(logits, 1, start, mask_token_id=mask, **{**options, "temperature": 1.5}).prev_sample
    with pytest.raises(AssertionError):
        check_same_law(drawn[0], hotter, 5)


def test_no_schedule_transfers_nothing():
    hidden, weight, _ = factors()
    masked = torch.full((B, L), V - 1)
    theirs, mine = pair("BlockRefinementScheduler")
    for scheduler in (theirs, mine):
        output = scheduler.step(logits_of(hidden, weight), 0, masked, mask_token_id=V - 1)
        assert torch.equal(output.prev_sample, masked)


# What all of them do


def calls(name: str):
    """Steps of a scheduler, by name."""
    scheduler = getattr(ours, name)(num_inference_steps=6)
    if name == "BlockRefinementScheduler":
        scheduler.set_timesteps(6, block_length=L)
        options = {"temperature": 0.8, "top_k": 20}
        return [
            lambda *a, **k: copy.deepcopy(scheduler).step(*a, **k, **options),
            lambda *a, **k: scheduler.step(*a, **k, **options, mask_token_id=7),
        ]
    if name == "EntropyBoundScheduler":
        return [scheduler.step]
    plug_in = ours.PlugInDDIMScheduler(num_inference_steps=6, corrector_k=3)
    return [
        lambda *a, **k: scheduler.step(*a, **k, temperature=0.9),
        lambda *a, **k: plug_in.step(*a, **k, temperature=0.9),
        plug_in.step_correct,
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_sequences_and_hidden_states_are_logits(name, monkeypatch):
    hidden, weight, sample = factors(3)
    logits, before = logits_of(hidden, weight, 6.0), sample.clone()
    head = torch.nn.Linear(D, V, bias=False)
    head.weight.data.copy_(weight)
    monkeypatch.setattr(ours.LinearLogits, "multiplied_out", None)  # never called
    for call in calls(name):
        ids = torch.tensor([4, 0, 9])
        whole = call(logits, 2, sample, generator=generator(1), sample_ids=ids)
        same = call(
            None,
            2,
            sample,
            hidden=hidden,
            lm_head=head,
            softcap=6.0,
            generator=generator(1),
            sample_ids=ids,
        )
        lazy = call(
            ours.LinearLogits.of(hidden, weight, 6.0), 2, sample, generator=generator(1), sample_ids=ids
        )
        assert torch.equal(whole.prev_sample, same.prev_sample)
        assert torch.equal(whole.prev_sample, lazy.prev_sample)
        for row in range(B):
            one = slice(row, row + 1)
            alone = call(logits[one], 2, sample[one], generator=generator(1), sample_ids=ids[one])
            assert torch.equal(alone.prev_sample, whole.prev_sample[one])
        other = call(logits, 2, sample, generator=generator(2), sample_ids=ids)
        assert not torch.equal(other.prev_sample, whole.prev_sample)
        assert torch.equal(sample, before)


def test_one_generator_gives_other_noise_every_step():
    hidden, weight, sample = factors()
    scheduler, noise = ours.EntropyBoundScheduler(), generator(0)
    logits = logits_of(hidden, weight) * 0.1
    first, second = (scheduler.step(logits, 0, sample, generator=noise).prev_sample for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    third = scheduler.step(logits, 0, sample).prev_sample
    torch.manual_seed(0)
    assert torch.equal(third, scheduler.step(logits, 0, sample).prev_sample)


def test_both_or_neither_of_logits_and_hidden_states_is_an_error():
    hidden, weight, sample = factors()
    scheduler = ours.EntropyBoundScheduler()
    for arguments in ({}, {"hidden": hidden}):
        with pytest.raises(ValueError, match="model_output: got both or neither"):
            scheduler.step(None, 0, sample, **arguments)
    with pytest.raises(ValueError, match="model_output: got both or neither"):
        scheduler.step(hidden @ weight.T, 0, sample, hidden=hidden, lm_head=weight)
    with pytest.raises(ValueError, match="got logits of temperature 0.5"):
        scheduler.step(ours.LinearLogits.of(hidden, weight) / 0.5, 0, sample)
