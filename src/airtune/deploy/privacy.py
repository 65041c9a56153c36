"""Differential privacy on the device: clip the update, add noise, account for what was spent.

Each device protects its own data before anything leaves it (local model): the update is scaled
to an L2 norm of at most C and Gaussian noise of standard deviation z C is added to every value.
Two data sets of one device change the clipped update by at most 2C, whatever they are, so one
round is the Gaussian mechanism with sensitivity 2C.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError

from airtune.deploy.protocol import Arrays, Privacy, norm
from airtune.errors import InputError
from airtune.scenario import Scenario

_ORDERS = np.concatenate([np.linspace(1.01, 2, 100), np.arange(2.1, 12, 0.1), np.arange(12, 513)])


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Return the epsilon of (epsilon, delta)-differential privacy after some rounds.

    Rényi differential privacy of the Gaussian mechanism with sensitivity 2C and noise z C is
    2 a / z^2 at order a (Mironov, 2017, with Delta/sigma = 2/z) and adds over rounds. It becomes
    epsilon by Canonne, Kamath and Steinke (2020), proposition 12:
    R a' + log((a-1)/a) - (log delta + log a)/(a-1), least over the orders a. No amplification by
    sampling is claimed: every device takes part in every round.

    Args:
        noise_multiplier: z, the noise's standard deviation over the clipping norm.
        rounds: how many updates were sent.
        delta: the probability that the bound may fail.
    """
    if not (noise_multiplier > 0 and 0 < delta < 1 and rounds >= 0):
        raise InputError(
            f"privacy: noise {noise_multiplier!r} must be above 0, delta {delta!r} in (0, 1)"
        )
    if rounds == 0:
        return 0.0
    a = _ORDERS
    renyi = rounds * 2.0 * a / noise_multiplier**2
    bounds = renyi + np.log1p(-1.0 / a) - (math.log(delta) + np.log(a)) / (a - 1.0)
    return max(0.0, float(bounds.min()))


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
            "units a device keeps is chosen on its own text and travels in the clear"
        )
    if scenario.pruning.cost == "measured":
        raise InputError(
            "privacy needs pruning.cost = 'linear': a measured cost curve tells of the "
            "device's text"
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


def parse_privacy(text: str) -> Privacy:
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
            raise InputError(f"--privacy '{part}': allowed are {allowed}") from None
    try:
        return Privacy(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = next(short for short, name in names.items() if name == first["loc"][0])
        raise InputError(f"--privacy {key}: {first['msg'].lower()}") from None
