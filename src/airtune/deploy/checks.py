"""What an update from outside has to pass before the round loop sees it.

The loop itself refuses numbers that are not finite. Here are the
checks that only matter where the sender is somebody else: that it answers this job as this
client, with the sample count that it announced, with units that the model has, and with values
that the asked number of optimiser steps can reach at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from airtune.adapters.names import Adapter
from airtune.adapters.slices import gather_adapter
from airtune.deploy.codec import adapter_of, layout_of, structure_of
from airtune.deploy.protocol import Arrays, Introduction, Privacy, ProtocolError, Update
from airtune.models.structure import check_structure
from airtune.models.workload import (
    ModelShape,
    StepTokens,
    payload_bits,
    realised_pruning,
    training_flops,
)
from airtune.scenario import Scenario, TrainingSection
from airtune.training.client import ClientJob, ClientUpdate


def checked_update(
    fields: Update,
    arrays: Arrays,
    *,
    job: ClientJob,
    own: Introduction,
    run: str,
    scenario: Scenario,
    shape: ModelShape,
    steps: Sequence[StepTokens],
) -> ClientUpdate:
    """Return the update in the round loop's terms; what it cost is counted here, not believed.

    Args:
        fields: of the device's message.
        arrays: of the device's message.
        job: what it was asked.
        own: how the device introduced itself.
        run: the name of this run.
        scenario: the server's.
        shape: the model's.
        steps: the sizes of the local steps that it announced for this round.

    Raises:
        ProtocolError: it fails a check; says which.
        InputError: its kept units are not ones of this model.
    """
    if (fields.run, fields.round, fields.client) != (run, job.round, own.client):
        raise ProtocolError(
            f"an answer for run {fields.run}, round {fields.round}, client {fields.client}"
        )
    if fields.examples != own.examples:
        raise ProtocolError(f"{fields.examples} examples, {own.examples} were announced")
    if fields.train_loss is None and own.privacy is None:
        raise ProtocolError("no training loss")
    structure = structure_of(arrays, shape)
    check_structure(structure, shape)
    before = gather_adapter(job.adapter, structure, shape)
    adapter = adapter_of(arrays, layout_of(before))
    training = scenario.training.in_round(job.round, scenario.rounds)
    mode = job.assignment.mode
    _check_distance(before, adapter, mode.local_steps, training, own.privacy)
    return ClientUpdate(
        round=job.round,
        client=job.client,
        adapter=adapter,
        structure=structure,
        pruning=realised_pruning(shape, structure.sizes),
        flops=sum(training_flops(shape, structure.sizes, s, mode) for s in steps),
        uplink_bits=payload_bits(shape, structure.sizes, mode),
        examples=fields.examples,
        train_loss=fields.train_loss,
    )


def _check_distance(
    before: Adapter, after: Adapter, steps: int, section: TrainingSection, privacy: Privacy | None
) -> None:
    moved = math.sqrt(sum(_squared(after[name] - before[name]) for name in before))
    values = sum(value.numel() for value in before.values())
    start = math.sqrt(sum(_squared(value) for value in before.values()))
    bound = norm_bound(section, steps, values, start, privacy)
    # NaN compares false and is left to the loop's own validation.
    if moved > bound:
        raise ProtocolError(
            f"it moved by {moved:.3g}; {steps} local steps cannot move further than {bound:.3g}"
        )


def norm_bound(
    section: TrainingSection,
    steps: int,
    values: int,
    start_norm: float,
    privacy: Privacy | None,
) -> float:
    """Return how far an honest update can be from the adapter that it began with, in L2 norm.

    AdamW moves a value by at most lr (1 - beta1)/sqrt(1 - beta2) = 3.17 lr a step (Kingma and
    Ba, 2015, section 2.1), and weight decay by lr wd |value|. 10 % are added for the rounding to
    16 bits, relative to the values. With privacy the change is at most C, and the noise's norm
    is z C sqrt(values) within six standard deviations.

    Args:
        section: learning rate and weight decay.
        steps: local steps.
        values: how many values the update has.
        start_norm: L2 norm of the adapter that it began with.
        privacy: as the device announced it.
    """
    if privacy is not None:
        noise = privacy.noise_multiplier * privacy.clip * (math.sqrt(values) + 6)
        return 1.1 * (privacy.clip + noise) + 1e-2 * start_norm
    step = section.learning_rate * 0.1 / math.sqrt(0.001)
    moved = steps * step * math.sqrt(values)
    decayed = steps * section.learning_rate * section.weight_decay * (start_norm + moved)
    return 1.1 * (moved + decayed) + 1e-2 * start_norm


def _squared(value: Tensor) -> float:
    return float(value.double().square().sum())
