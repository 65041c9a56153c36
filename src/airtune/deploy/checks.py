"""What an update from outside has to pass before the round loop sees it.

The loop itself refuses numbers that are not finite. Here are the checks that only matter where
the sender is not this program: that it answers this job as this client, with the sample count
that it announced, with units that the model has and the plan asked for, and with values that the
asked number of optimiser steps, or the noise that the operator allowed, can reach at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import gather_adapter
from airtune.deploy.codec import arrays_of, structure_of, trained, updated_adapter
from airtune.deploy.held import Held, Sending
from airtune.deploy.introductions import TOP_FLOPS, check_steps, far_from
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

_MOST_LOSS = 1e4
"""Per answer token; guessing among 10^6 tokens is 13.8."""
_EMULATED = 1e-6
"""Both ends count the same FLOPs: this is for rounding alone."""
_DEVIATIONS = 8.0
"""How far one noised value may be from its mean: beyond it once in 10^15 values."""


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
    waited_s: float,
    sending: Sending | None = None,
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
        waited_s: how long after the job was sent the answer was here, by the server's clock.
        sending: what the job carried; None: the whole adapter.

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
    sending = sending or Held(scenario).sending(job)
    if fields.held_sha256 != sending.sha256:
        raise ProtocolError("it did not begin with the adapter that it was sent")
    _check_loss(fields, own.privacy)
    check_steps(fields.next_steps, scenario, private=own.privacy is not None)
    mode = job.assignment.mode
    if unknown := sorted(arrays.keys() - arrays_of(mode)):
        raise ProtocolError(f"array {unknown[0][:80]!r} is not part of an update")
    structure = structure_of(arrays, shape)
    check_structure(structure, shape)
    asked = job.assignment.pruning
    if far_from(asked, structure.sizes, scenario, shape):
        left_out = realised_pruning(shape, structure.sizes)
        raise ProtocolError(
            f"it left out {left_out:.3f} of the model, the plan asks for {asked:.3f}"
        )
    sent = gather_adapter(leading(job.adapter, mode.rank) | sending.began, structure, shape)
    # What the device began with: the trained entries, as they reached it.
    before = trained(sent, mode)
    adapter = updated_adapter(arrays, before, mode)
    training = scenario.training.in_round(job.round, scenario.rounds)
    if own.privacy is None:
        _check_distance(before, adapter, mode.local_steps, training)
    else:
        _check_noised(before, adapter, own.privacy)
    done = steps[: mode.local_steps]
    flops = sum(training_flops(shape, structure.sizes, step, mode) for step in done)
    _check_time(fields.compute_s, flops, waited_s)
    _check_emulated(fields, own, flops)
    return ClientUpdate(
        round=job.round,
        client=job.client,
        adapter=sent | adapter,
        structure=structure,
        pruning=realised_pruning(shape, structure.sizes),
        flops=flops,
        uplink_bits=payload_bits(shape, structure.sizes, mode),
        examples=fields.examples,
        train_loss=fields.train_loss,
    )


def _check_loss(fields: Update, privacy: Privacy | None) -> None:
    if privacy is not None:
        if fields.train_loss is not None:
            raise ProtocolError("train_loss is not sent with privacy")
        if fields.epsilon is None:
            raise ProtocolError("epsilon is missing: it was introduced with privacy")
        return
    if fields.epsilon is not None:
        raise ProtocolError("epsilon is given, and it was introduced without privacy")
    if fields.train_loss is None:
        raise ProtocolError("no training loss")
    if not 0 <= fields.train_loss <= _MOST_LOSS:
        raise ProtocolError(f"train_loss is {fields.train_loss:g}: allowed are 0 to {_MOST_LOSS:g}")


def _check_time(compute_s: float, flops: float, waited_s: float) -> None:
    least = flops / TOP_FLOPS
    if not least <= compute_s <= waited_s:
        raise ProtocolError(
            f"compute_s is {compute_s:.3g}: allowed are {least:.3g} to {waited_s:.3g}, after "
            "which it answered"
        )


def _check_emulated(fields: Update, own: Introduction, flops: float) -> None:
    """Hold an emulated time against the speed that was announced: flops / effective_flops.

    A private device's batches are counted as full ones, so its time may be shorter.
    """
    if fields.emulated_s is None:
        return
    most = flops / own.effective_flops * (1 + _EMULATED)
    least = 0.0 if own.privacy is not None else flops / own.effective_flops * (1 - _EMULATED)
    if not least <= fields.emulated_s <= most:
        raise ProtocolError(
            f"emulated_s is {fields.emulated_s:.3g}: allowed are {least:.3g} to {most:.3g}, at "
            f"the {own.effective_flops:.3g} FLOP/s that it announced"
        )


def _check_distance(before: Adapter, after: Adapter, steps: int, section: TrainingSection) -> None:
    moved = math.sqrt(sum(_squared(after[name] - before[name]) for name in before))
    values = sum(value.numel() for value in before.values())
    start = math.sqrt(sum(_squared(value) for value in before.values()))
    bound = norm_bound(section, steps, values, start)
    if not math.isfinite(moved):
        raise ProtocolError("values that are not finite")
    if moved > bound:
        raise ProtocolError(
            f"it moved by {moved:.3g}; {steps} local steps cannot move further than {bound:.3g}"
        )


def norm_bound(section: TrainingSection, steps: int, values: int, start_norm: float) -> float:
    """Return how far an honest update can be from the adapter that it began with, in L2 norm.

    AdamW moves a value by at most lr (1 - beta1)/sqrt(1 - beta2) = 3.17 lr a step (Kingma and
    Ba, 2015, section 2.1), and weight decay by lr wd |value|. 10 % are added for the rounding to
    16 bits, relative to the values.

    Args:
        section: learning rate and weight decay.
        steps: local steps.
        values: how many values the update has.
        start_norm: L2 norm of the adapter that it began with.
    """
    step = section.learning_rate * 0.1 / math.sqrt(0.001)
    moved = steps * step * math.sqrt(values)
    decayed = steps * section.learning_rate * section.weight_decay * (start_norm + moved)
    return 1.1 * (moved + decayed) + 1e-2 * start_norm


def noise_range(privacy: Privacy, values: int) -> tuple[float, float, float]:
    """Return least and largest L2 norm of a noised change, and its largest single value.

    The change before the noise has a norm of at most C. The norm of n independent standard
    normal values lies between sqrt(n) - 1 and sqrt(n) on average, and is further from its mean
    than t with a probability of at most 2 exp(-t^2/2) (it is 1-Lipschitz): 6 on either side.

    Args:
        privacy: C and z, as announced and allowed.
        values: n.
    """
    deviation = privacy.noise_multiplier * privacy.clip
    least = deviation * max(0.0, math.sqrt(values) - 7) - privacy.clip
    most = deviation * (math.sqrt(values) + 6) + privacy.clip
    return max(0.0, least), most, privacy.clip + _DEVIATIONS * deviation


def _check_noised(before: Adapter, after: Adapter, privacy: Privacy) -> None:
    changes = [after[name] - before[name] for name in before]
    moved = math.sqrt(sum(_squared(change) for change in changes))
    if not math.isfinite(moved):
        raise ProtocolError("values that are not finite")
    largest = max(float(change.abs().max()) for change in changes if change.numel())
    least, most, each = noise_range(privacy, sum(change.numel() for change in changes))
    # Half a step of float16 on the way there and back, relative to the values that are sent.
    sent = math.sqrt(sum(_squared(value) for value in after.values()))
    peak = max(float(value.abs().max()) for value in after.values() if value.numel())
    slack, each = 2**-10 * sent, each + 2**-10 * peak
    if not least - slack <= moved <= most + slack or largest > each:
        raise ProtocolError(
            f"it moved by {moved:.3g}, {largest:.3g} in one value; with its noise a change has "
            f"{least:.3g} to {most:.3g}, and at most {each:.3g} in one value"
        )


def _squared(value: Tensor) -> float:
    return float(value.double().square().sum())
