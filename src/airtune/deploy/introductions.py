"""What a device's introduction has to pass before it takes part.

Nothing a device says of itself is believed further than the server can bound it: by the model
and the scenario, which both ends have, by the operator's leave, and by the server's own clock.
An introduction that fails refuses its device and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airtune.deploy.protocol import Introduction, Privacy, ProtocolError, Step
from airtune.errors import InputError
from airtune.models.devices import profile_of
from airtune.models.workload import (
    KeptSizes,
    ModelShape,
    StepTokens,
    largest_step,
    realised_pruning,
    training_flops,
    uniform_sizes,
)
from airtune.planning.curves import checked_curve
from airtune.planning.inputs import ClientLoad, cost_line, full_steps, modes_of
from airtune.scenario import Scenario

TOP_FLOPS = 1e16
"""FLOP/s: ten times what the fastest accelerator of 2026 reaches in 16 bits."""
TOP_MEMORY_BYTES = 1e15
_SLOWER = 10.0
"""How much slower than its profile in the scenario a device may be without showing it."""
_MOST_CURVE_POINTS = 64


@dataclass(frozen=True)
class Known:
    """What the server knows without asking a device."""

    scenario: Scenario
    shape: ModelShape
    labels: frozenset[str]
    """Of all training examples."""
    privacy: Privacy | None = None
    """The largest clipping norm and noise that the operator allows; None: no privacy."""


def check_introduction(own: Introduction, known: Known, client: int, *, waited_s: float) -> None:
    """Hold an introduction against what the server knows.

    Args:
        own: what the device says.
        known: what the server knows.
        client: the index of the client that the device plays.
        waited_s: how long after the first greeting it answered, by the server's clock.

    Raises:
        ProtocolError: says what is out of range, and the range.
    """
    _check_privacy(own, known.privacy)
    _check_examples(own, known)
    _check_curve(own, known.scenario)
    _check_most_pruned(own, known)
    if not 0 < own.memory_bytes <= TOP_MEMORY_BYTES:
        raise ProtocolError(
            f"memory_bytes is {own.memory_bytes:g}: allowed are up to {TOP_MEMORY_BYTES:g}"
        )
    check_steps(own.next_steps, known.scenario, private=own.privacy is not None)
    steps = planned_steps(own.next_steps, known.scenario)
    _check_memory(own, known, client, steps)
    _check_speed(own, known, client, steps, waited_s)


def check_steps(steps: Sequence[Step], scenario: Scenario, *, private: bool) -> None:
    """Refuse sizes of local steps that this scenario cannot have; raises `ProtocolError`.

    With privacy none are sent: how long a device's texts are tells of the texts.
    """
    training, longest = scenario.training, scenario.task.max_tokens
    wanted = 0 if private else training.local_steps
    if len(steps) != wanted:
        raise ProtocolError(f"next_steps has {len(steps)} steps: {wanted} are expected")
    for step in steps:
        if step.rows > training.batch_size or step.length > longest:
            raise ProtocolError(
                f"next_steps has {step.rows} rows of {step.length} tokens: allowed are "
                f"{training.batch_size} of {longest}"
            )
        if step.label_tokens > step.rows * step.length:
            raise ProtocolError(
                f"next_steps has {step.label_tokens} answer tokens among "
                f"{step.rows * step.length} tokens"
            )


def planned_steps(steps: Sequence[Step], scenario: Scenario) -> tuple[StepTokens, ...]:
    """Return the step sizes to plan with: full batches where a device keeps its own back."""
    if steps:
        return tuple(StepTokens(step.rows, step.length, step.label_tokens) for step in steps)
    return full_steps(scenario.training, scenario.task.max_tokens)


def most_examples(scenario: Scenario) -> int:
    """Return how many examples one client can have after the scenario's partition."""
    clients, held = len(scenario.client_devices), scenario.task.client_eval_examples
    whole, part = scenario.task.train_examples, scenario.partition
    if part.kind == "quantity":
        return whole - (clients - 1) * (part.min_examples + held) - held
    return -(-whole // clients) - held


def _check_privacy(own: Introduction, allowed: Privacy | None) -> None:
    asked = own.privacy
    if asked is None:
        return
    says = f"clip={asked.clip:g},noise={asked.noise_multiplier:g}"
    if allowed is None:
        raise ProtocolError(
            f"it adds noise to its updates ({says}), which the operator has not allowed "
            "(`airtune deploy run --allow-privacy`)"
        )
    if asked.clip > allowed.clip or asked.noise_multiplier > allowed.noise_multiplier:
        raise ProtocolError(
            f"it adds noise to its updates ({says}); the operator allows at most "
            f"clip={allowed.clip:g},noise={allowed.noise_multiplier:g}"
        )
    if own.labels:
        raise ProtocolError("labels are not sent with privacy")


def _check_examples(own: Introduction, known: Known) -> None:
    least, most = known.scenario.partition.min_examples, most_examples(known.scenario)
    if not least <= own.examples <= most:
        raise ProtocolError(
            f"{own.examples} examples: a client of this scenario has {least} to {most}"
        )
    if own.privacy is not None:
        return
    for label, count in own.labels.items():
        if label not in known.labels or count < 1:
            raise ProtocolError(f"labels has {label[:40]!r}: {count}; not one of this task")
    if (total := sum(own.labels.values())) != own.examples:
        raise ProtocolError(f"labels counts {total} of {own.examples} examples")


def _check_curve(own: Introduction, scenario: Scenario) -> None:
    measured = scenario.pruning.cost == "measured"
    if own.pruning_cost is None:
        if measured:
            raise ProtocolError("pruning_cost is missing: the scenario asks for a measured curve")
        return
    if not measured or own.privacy is not None:
        raise ProtocolError("pruning_cost is given, and the scenario does not ask for it")
    if len(own.pruning_cost) > _MOST_CURVE_POINTS:
        raise ProtocolError(
            f"pruning_cost has {len(own.pruning_cost)} points: allowed are {_MOST_CURVE_POINTS}"
        )
    try:
        checked_curve(own.client, own.pruning_cost, scenario.pruning.max_pruning)
    except InputError as error:
        raise ProtocolError(str(error)) from None
    # The measured cost is scaled so that it is nowhere above the linear one.
    if any(cost > rate * (1 + 1e-9) for rate, cost in own.pruning_cost):
        raise ProtocolError("pruning_cost is above the linear cost of pruning")


def most_pruned(own: Introduction) -> KeptSizes | None:
    """Return the sizes that a device announced for its submodel at pruning.max_pruning."""
    if own.most_pruned is None:
        return None
    return KeptSizes(tuple(c for c, _ in own.most_pruned), tuple(g for _, g in own.most_pruned))


def far_from(rate: float, sizes: KeptSizes, scenario: Scenario, shape: ModelShape) -> bool:
    """Say whether a submodel is further from a pruning rate than units explain.

    A rate is met within half of the largest step in which units are given up; where units run
    out before it, within 0.01 (see `pruning.choose`).
    """
    step = largest_step(shape, scenario.pruning.units)
    return abs(realised_pruning(shape, sizes) - rate) > step / 2 + 0.01


def _check_most_pruned(own: Introduction, known: Known) -> None:
    sizes, section, shape = most_pruned(own), known.scenario.pruning, known.shape
    wanted = section.cost == "measured" and section.max_pruning > 0
    if sizes is None:
        if wanted:
            raise ProtocolError("most_pruned is missing: the scenario asks for a measured curve")
        return
    if not wanted or own.privacy is not None:
        raise ProtocolError("most_pruned is given, and the scenario does not ask for it")
    if (
        len(sizes.mlp_channels) != shape.blocks
        or max(sizes.mlp_channels) > shape.mlp_channels
        or max(sizes.kv_groups) > shape.kv_heads
    ):
        raise ProtocolError("most_pruned is not a submodel of this model")
    if far_from(section.max_pruning, sizes, known.scenario, shape):
        raise ProtocolError(
            f"most_pruned leaves out {realised_pruning(shape, sizes):.3f} of the model; the "
            f"scenario's largest is {section.max_pruning:g}"
        )


def _check_memory(
    own: Introduction, known: Known, client: int, steps: tuple[StepTokens, ...]
) -> None:
    scenario = known.scenario
    most = scenario.pruning.max_pruning
    load = ClientLoad(steps, own.examples, most_pruned=most_pruned(own))
    costs = cost_line(scenario, known.shape, load, modes_of(scenario)[client])
    if costs.min_pruning(own.memory_bytes) > most:
        raise ProtocolError(
            f"its memory of {own.memory_bytes / 1e9:g} GB does not hold the model even at "
            f"pruning.max_pruning = {most:g}"
        )


def _check_speed(
    own: Introduction,
    known: Known,
    client: int,
    steps: tuple[StepTokens, ...],
    waited_s: float,
) -> None:
    # A device rehearses a round before it answers. In the time that it took it did that work at
    # least once, so it is no slower; one as slow as the scenario says need not show it.
    scenario = known.scenario
    sizes = uniform_sizes(known.shape, scenario.pruning.max_pruning / 2)
    mode = modes_of(scenario)[client]
    rehearsed = sum(training_flops(known.shape, sizes, step, mode) for step in steps)
    shown = 0.5 * rehearsed / max(waited_s, 1e-9)
    expected = profile_of(scenario.client_devices[client]).effective_flops / _SLOWER
    least = min(shown, expected)
    if not least <= own.effective_flops <= TOP_FLOPS:
        raise ProtocolError(
            f"effective_flops is {own.effective_flops:.3g}: allowed are {least:.3g} to "
            f"{TOP_FLOPS:.3g} for a device that answered within {waited_s:.1f} s"
        )
