import math

import pytest
import torch

from ggm.evaluation.perplexity import LanguageModel, PerplexityConfig, averages

TEXTS = ["the cat", "a", "the dog sat on the log, the cat sat", "", "object: 0.5!", "on the mat and", "!!"]


def expected_nlls(folder, texts, *, max_length=24, start=False) -> list[torch.Tensor]:
    """One sample at a time, without batch, mask or padding, in float64."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    found = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ([tokenizer.bos_token_id] if start else []) + ids
        ids = ids[:max_length]
        values = []
        for i in range(1, len(ids)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
            values.append(float(logits.logsumexp(0) - logits[ids[i]]))
        found.append(torch.tensor(values, dtype=torch.float64))
    return found


def scored(folder, texts=TEXTS, **options):
    language_model = LanguageModel(PerplexityConfig(str(folder), **options))
    return language_model.nlls(language_model.encode(texts))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_batches_score_what_a_loop_over_samples_scores(models, kind, start, batch):
    ours = scored(models[kind], precision="fp64", batch=batch, start_token=start, max_length=10)
    theirs = expected_nlls(models[kind], TEXTS, start=start, max_length=10)
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    assert max(len(row) for row in ours) == 9
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)
    # The comparison can fail: the likelihoods of another text are others.
    assert (torch.cat(ours) - torch.cat(theirs).flip(0)).abs().max() > 0.1


def test_no_position_may_move_when_rows_are_padded(models):
    """GPT-2 has positions of its own: with padding on the left, unmasked, the short sample changes."""
    alone, beside = (scored(models["gpt2"], texts, precision="fp64")[0] for texts in (TEXTS[:1], TEXTS))
    torch.testing.assert_close(beside, alone, rtol=1e-12, atol=1e-12)
    language_model = LanguageModel(PerplexityConfig(str(models["gpt2"]), "fp64"))
    (row,) = language_model.encode(TEXTS[:1])
    with torch.inference_mode():
        logits = language_model.model(input_ids=torch.tensor([[0] * 5 + row])).logits[0, 5:-1]
    shifted = torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="none")
    assert (shifted - alone).abs().max() > 1e-2


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.3)])
def test_other_precisions_are_near(models, precision, tolerance):
    ours, theirs = (
        torch.cat(scored(models["llama"], precision=precision)),
        torch.cat(expected_nlls(models["llama"], TEXTS)),
    )
    assert 0 < (ours - theirs).abs().max() < tolerance


def test_the_two_averages_differ_where_they_should():
    found = averages([torch.zeros(3).double(), torch.tensor([math.log(4)]).double(), torch.zeros(0).double()])
    assert found["mean_over_samples"] == pytest.approx((1 + 4) / 2)
    assert found["over_tokens"] == pytest.approx(4 ** (1 / 4))
    assert found["nll_per_token"] == pytest.approx(math.log(4) / 4)
    assert found["standard_error"] == pytest.approx(math.sqrt(4.5 / 2))
    assert (found["samples_scored"], found["samples_unscored"], found["tokens_scored"]) == (2, 1, 4)
    assert averages([torch.ones(2).double()])["standard_error"] is None


def test_samples_without_a_token_to_score_are_refused_with_progress_too(models):
    language_model = LanguageModel(PerplexityConfig(str(models["gpt2"])))
    with pytest.raises(ValueError, match="no sample has two tokens"):
        language_model.score([[1], []], progress=True)


def test_the_last_batch_counts_though_it_is_not_full(models):
    language_model = LanguageModel(PerplexityConfig(str(models["gpt2"]), batch=2))
    tokens = language_model.encode([TEXTS[i] for i in (0, 2, 4, 5, 6)])
    found = language_model.score(tokens)
    assert found["samples_scored"] == 5 and found["tokens_scored"] == sum(len(row) - 1 for row in tokens)
    by_hand = averages(expected_nlls(models["gpt2"], [TEXTS[i] for i in (0, 2, 4, 5, 6)]))
    without_last = averages(expected_nlls(models["gpt2"], [TEXTS[i] for i in (0, 2, 4, 5)]))
    for name in ("mean_over_samples", "over_tokens"):
        assert found[name] == pytest.approx(by_hand[name], rel=1e-4)
        assert abs(found[name] - without_last[name]) > 1e-2 * found[name]


def test_what_is_cut_is_told(models):
    language_model = LanguageModel(PerplexityConfig(str(models["gpt2"]), max_length=4, start_token=True))
    tokens = language_model.encode(["the cat sat", "the dog sat on the log", "a"])
    found = language_model.score(tokens)
    cut = [max(len(row) - 3, 0) for row in tokens]
    assert sum(cut) > 0
    assert found["tokens_cut"] == sum(cut) and found["samples_cut"] == sum(part > 0 for part in cut)
    assert (
        found["max_length"] == 4 and found["first_token_scored"] and found["start_token"] == "<|endoftext|>"
    )
    whole = LanguageModel(PerplexityConfig(str(models["gpt2"])))
    assert whole.max_length == 24  # the model's own
    found = whole.score(whole.encode(["the cat sat"]))
    assert found["tokens_cut"] == 0 and not found["first_token_scored"] and found["start_token"] is None


def test_a_start_token_is_there_when_asked_for_only(models):
    import transformers

    with_start = transformers.AutoTokenizer.from_pretrained(models["llama"])("the cat")["input_ids"]
    assert with_start[0] == 0
    language_model = LanguageModel(PerplexityConfig(str(models["llama"])))
    assert language_model.encode(["the cat"]) == [with_start[1:]]


def test_a_model_that_looks_ahead_is_refused(models):
    with pytest.raises(ValueError, match="looks at tokens that are to come"):
        LanguageModel(PerplexityConfig(str(models["bert"])))


def test_nothing_to_score_is_an_error(models):
    language_model = LanguageModel(PerplexityConfig(str(models["gpt2"])))
    with pytest.raises(ValueError, match="nothing to score"):
        language_model.score([[5], []])


def test_a_tokenizer_of_another_model_is_refused(models, tmp_path):
    from shutil import copytree

    from tests.ggm.evaluation.conftest import write_model

    small = write_model(tmp_path / "small", "gpt2", vocab_size=40)
    with pytest.raises(ValueError, match=r"got token \d+; allowed: 0 to 39"):
        LanguageModel(PerplexityConfig(str(small))).encode(["the cat"])
    characters = copytree(models["gpt2"], tmp_path / "characters")
    import transformers

    from ggm.data.text import char_tokenizer

    tokenizer = char_tokenizer(["abc"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(characters)
    language_model = LanguageModel(PerplexityConfig(str(characters)))
    assert language_model.encode(["cab"]) == [[2, 0, 1]]
    with pytest.raises(ValueError, match="cannot read the samples"):
        language_model.encode(["x"])
    with pytest.raises(ValueError, match="no start token"):
        LanguageModel(PerplexityConfig(str(characters), start_token=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "precision: got"),
        ({"batch": 0}, "batch: got 0"),
        ({"max_length": 1}, "max_length: got 1"),
    ],
)
def test_configurations_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        PerplexityConfig("model", **options)


def test_a_length_that_the_model_does_not_have_is_refused(models):
    with pytest.raises(ValueError, match="allowed: 2 to 24"):
        LanguageModel(PerplexityConfig(str(models["llama"]), max_length=25))
