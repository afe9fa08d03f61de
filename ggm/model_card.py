"""Model cards: what a model is, what it learnt from, how well, and how to use it, as Markdown for the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CARD = "README.md"
# A picture of samples beside a card.
PICTURE = "samples.png"
_HEAD = """\
---
library_name: ggm-kernels
tags:
- discrete-diffusion
- glauber-dynamics
{tags}---

# {title}

A Glauber generative model ([arXiv 2405.17035](https://arxiv.org/abs/2405.17035)): {network};
vocabulary {vocab_size}, sequences of {length} tokens; a chain of {sweeps} sweeps.

## Use

    pip install 'ggm-kernels[hub]'

```python
from ggm import GGM

model = GGM.from_pretrained("{name}")
samples = model.sample(4, seed=0)
print({shown})
```

`infill` draws the rest of sequences that are given in part.
"""


@dataclass(frozen=True)
class Training:
    """What a card tells of a training.

    Attributes
    ----------
    data : mapping
        Values of the run's `data`.
    numbers : mapping
        Steps, losses, .. by name.
    samples : sequence of str
        Texts that the model drew.
    picture : bool
        Whether `PICTURE` shows samples.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[str] = ()
    picture: bool = False


def model_card(
    config: Mapping[str, Any], parameters: int, kind: str | None, training: Training | None, name: str
) -> str:
    """Markdown of a card.

    Parameters
    ----------
    config : mapping
        Of `GGMConfig.to_dict`.
    parameters : int
        How many the network has.
    kind : str or None
        "text", "images", or None: what the tokens are.
    training : Training, optional
        What is known of it.
    name : str
        What `from_pretrained` is to be called with.
    """
    shown = {"text": "samples.text", "images": "samples.images.shape"}.get(kind or "", "samples.tokens")
    task = {
        "text": "pipeline_tag: text-generation\n",
        "images": "pipeline_tag: unconditional-image-generation\n",
    }
    head = _HEAD.format(
        tags=task.get(kind or "", ""),
        title=name.rpartition("/")[2],
        network=f"a {config['backbone']['kind']} network of {parameters:,} parameters",
        vocab_size=config["vocab_size"],
        length=config["chain"]["length"],
        sweeps=config["chain"]["sweeps"],
        name=name,
        shown=shown,
    )
    return head + "".join(_sections(training)) if training is not None else head


def _sections(training: Training) -> Iterator[str]:
    if training.data:
        yield "\n## Data\n\n| | |\n| --- | --- |\n"
        yield from (f"| {key} | `{value}` |\n" for key, value in training.data.items() if value is not None)
    if training.numbers:
        yield "\n## Training\n\n| | |\n| --- | --- |\n"
        yield from (f"| {key} | {value:.5g} |\n" for key, value in training.numbers.items())
    if training.picture:
        yield f"\n## Samples\n\n![samples]({PICTURE})\n"
    elif training.samples:
        yield "\n## Samples\n"
        for text in training.samples:
            yield "\n" + "\n".join(f"    {line}" for line in text.splitlines()) + "\n"
