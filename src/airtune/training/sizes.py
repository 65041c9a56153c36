"""What a client's local steps compute, from the lengths of its texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.data import IGNORED, Batch, Encoded, drawn
from airtune.models.workload import StepTokens
from airtune.randomness import generator
from airtune.scenario import Scenario


@dataclass(frozen=True, eq=False)
class TextSizes:
    """One client's training examples, in their order."""

    lengths: NDArray[np.int64]
    """Tokens."""
    labels: NDArray[np.int64]
    """Tokens with loss."""


def sizes_of(texts: Sequence[Encoded]) -> TextSizes:
    """Count a client's examples."""
    ignored = np.array([text.labels.count(IGNORED) for text in texts], dtype=np.int64)
    lengths = np.array([len(text.input_ids) for text in texts], dtype=np.int64)
    return TextSizes(lengths, lengths - ignored)


def step_tokens(
    scenario: Scenario, sizes: TextSizes, round: int, client: int
) -> tuple[StepTokens, ...]:
    """Return the size of each local step of a round: of the very batches that it will train on."""
    section = scenario.training
    cuts = drawn(
        sizes.lengths,
        batch_size=section.batch_size,
        steps=section.local_steps,
        rng=generator(scenario.seed, "batches", round=round, client=client),
    )
    return tuple(
        StepTokens(
            rows=len(cut),
            length=int(sizes.lengths[cut].max()),
            label_tokens=int(sizes.labels[cut].sum()),
        )
        for cut in cuts
    )


def tokens_of(batch: Batch) -> StepTokens:
    """Count what a step on this batch computes: rows, padded length, answer tokens."""
    rows, length = batch.input_ids.shape
    return StepTokens(
        rows=rows, length=length, label_tokens=int(torch.count_nonzero(batch.labels != -100))
    )
