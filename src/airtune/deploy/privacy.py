"""Differential privacy on the device: clip the update, add noise, account for what was spent.

Each device protects its own data before anything leaves it (local model): the update is scaled
to an L2 norm of at most C and Gaussian noise of standard deviation z C is added to every value.
Two data sets of one device change the clipped update by at most 2C, whatever they are, so one
round is the Gaussian mechanism with sensitivity 2C.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airtune.deploy.protocol import Arrays, Privacy, norm
from airtune.errors import InputError, RunError
from airtune.record.files import write_durably
from airtune.scenario import Scenario

_ORDERS = np.concatenate([np.linspace(1.01, 2, 100), np.arange(2.1, 12, 0.1), np.arange(12, 513)])


def epsilon(noise_multipliers: Sequence[float], delta: float) -> float:
    """Return the epsilon of (epsilon, delta)-differential privacy after some releases.

    Rényi differential privacy of the Gaussian mechanism with sensitivity 2C and noise z C is
    2 a / z^2 at order a (Mironov, 2017, with Delta/sigma = 2/z) and adds over releases, each at
    the noise that it had. It becomes epsilon by Canonne, Kamath and Steinke (2020),
    proposition 12: R a' + log((a-1)/a) - (log delta + log a)/(a-1), least over the orders a. No
    amplification by sampling is claimed: every device takes part in every round.

    Args:
        noise_multipliers: z of each release, the noise's standard deviation over the clipping
            norm.
        delta: the probability that the bound may fail.
    """
    for z in noise_multipliers:
        if not (0 < z < math.inf and 0 < delta < 1):
            raise InputError(
                f"privacy: noise {z!r} must be above 0, delta {delta!r} between 0 and 1"
            )
    if not noise_multipliers:
        return 0.0
    a = _ORDERS
    renyi = a * sum(2.0 / z**2 for z in noise_multipliers)
    bounds = renyi + np.log1p(-1.0 / a) - (math.log(delta) + np.log(a)) / (a - 1.0)
    return max(0.0, float(bounds.min()))


class Ledger(BaseModel):
    """What a device has released so far, in `privacy.json`; the file is the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    noise_multipliers: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = []
    """Of each release, in order."""
    epsilon: float = 0.0
    """Of all of them, at `delta`."""
    delta: float = 1e-5


def read_ledger(file: Path) -> Ledger:
    """Return what has been released so far; nothing where there is no file.

    Raises:
        InputError: the file cannot be read, or does not say at which noise each release was.
    """
    try:
        return Ledger.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Ledger()
    except (OSError, ValueError):
        raise InputError(
            f"'{file}' is not a privacy ledger with the noise of each release (earlier versions "
            "kept their number alone): what was spent is not known; move it away only if this "
            "device's data may be counted as new"
        ) from None


def next_ledger(file: Path, privacy: Privacy) -> Ledger:
    """Return what the ledger would say after one more release; nothing is written.

    Raises:
        RunError: the device's budget does not allow it.
        InputError: the ledger cannot be read.
    """
    released = [*read_ledger(file).noise_multipliers, privacy.noise_multiplier]
    spent = epsilon(released, privacy.delta)
    if privacy.max_epsilon is not None and spent > privacy.max_epsilon:
        raise RunError(
            f"privacy budget used up: this round would bring epsilon to {spent:.3g}, allowed "
            f"are {privacy.max_epsilon:g} at delta {privacy.delta:g}"
        )
    return Ledger(noise_multipliers=released, epsilon=spent, delta=privacy.delta)


def spend(file: Path, privacy: Privacy) -> float:
    """Count a release before it is made, on disk, so that a restart cannot forget it.

    Returns:
        epsilon of all releases at the device's delta, this one included.

    Raises:
        RunError: the device's budget does not allow it, or the file cannot be written; the
            ledger is as it was.
        InputError: the ledger cannot be read.
    """
    ledger = next_ledger(file, privacy)
    write_durably(file, ledger.model_dump_json().encode())
    return ledger.epsilon


LEAVES_WITHOUT_NOISE = (
    "leaves without noise: that the device takes part, its number of examples, its memory and "
    "kind, how long it works each round (texts of other lengths take other times), and its "
    "epsilon; not: losses, labels, token counts, cost curves, the choice of units"
)
"""What privacy does not cover, as the command prints it."""


def privatise(
    old: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    *,
    clip: float,
    noise_multiplier: float,
    rng: np.random.Generator | None = None,
) -> Arrays:
    """Return old + clipped(new − old) + noise, in float32.

    Args:
        old: the adapter that the round began with, which the server knows.
        new: the adapter after local training.
        clip: C, the largest L2 norm of the change.
        noise_multiplier: z; the noise has standard deviation z C in every value.
        rng: for tests. The default is seeded by the operating system: noise that can be
            derived from a run's seed could be subtracted again.
    """
    rng = rng or np.random.default_rng(secrets.randbits(256))
    change = {name: np.asarray(new[name], dtype=np.float64) - old[name] for name in sorted(new)}
    scale = min(1.0, clip / max(norm(change), np.finfo(np.float64).tiny))
    return {
        name: (
            old[name] + scale * value + noise_multiplier * clip * rng.standard_normal(value.shape)
        ).astype(np.float32)
        for name, value in change.items()
    }


def require_private_scenario(scenario: Scenario) -> None:
    """Refuse what cannot be combined with privacy.

    Raises:
        InputError: submodels are cut by each device's own text, or cost curves are sent.
    """
    if scenario.pruning.max_pruning > 0:
        raise InputError(
            f"privacy needs pruning.max_pruning = 0, not {scenario.pruning.max_pruning:g}: which "
            "units a device keeps is chosen on its own text and is sent unprotected"
        )
    if scenario.pruning.cost == "measured":
        raise InputError(
            "privacy needs pruning.cost = 'linear': a measured cost curve tells of the "
            "device's text"
        )
    if scenario.aggregation.uplink_change_bits is not None:
        raise InputError(
            "privacy needs aggregation.uplink_change_bits unset: the server holds an update "
            "against the noise that was announced, and rounding hides it"
        )
    if scenario.task.client_eval_examples > 0:
        raise InputError(
            "privacy needs task.client_eval_examples = 0: the loss on a device's own text is "
            "not noised"
        )


SECURE_AGGREGATION_REFUSED = (
    "secure aggregation is not offered: masks cancel only where every device sends the same "
    "coordinates, and here each device's submodel keeps its own; summing over the common ones "
    "alone would drop the rest, and the server could no longer check an update's norm; use "
    "privacy (clip and noise on the device) instead"
)
"""Why `secure_aggregation` cannot be switched on."""


def parse_privacy(text: str, option: str = "--privacy") -> Privacy:
    """Read `clip=0.5,noise=1.2[,delta=1e-5][,budget=8]`; raises `InputError`."""
    names = {
        "clip": "clip",
        "noise": "noise_multiplier",
        "delta": "delta",
        "budget": "max_epsilon",
    }
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            values[names[name.strip()]] = float(number)
        except (KeyError, ValueError):
            allowed = ", ".join(f"{name}=NUMBER" for name in names)
            raise InputError(f"{option} '{part}': allowed are {allowed}") from None
    try:
        return Privacy(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = next(short for short, name in names.items() if name == first["loc"][0])
        raise InputError(f"{option} {key}: {first['msg'].lower()}") from None
