"""Privacy on the device: the accountant against the exact curve, the mechanism by its moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm as gaussian

from airtune.deploy.privacy import epsilon, parse_privacy, privatise, require_private_scenario
from airtune.deploy.protocol import norm
from airtune.errors import InputError
from airtune.randomness import generator
from airtune.scenario import load_scenario


def exact_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Oracle: the Gaussian mechanism's exact curve (Balle and Wang, 2018, theorem 8).

    Composing n Gaussian mechanisms is one with sensitivity √n Δ; here Δ/σ = 2/z.
    """
    m = 2.0 * math.sqrt(rounds) / noise_multiplier

    def excess(e: float) -> float:
        tail = gaussian.logcdf(-m / 2 - e / m)
        return float(gaussian.cdf(m / 2 - e / m) - np.exp(e + tail) - delta)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 10 * m * m + 100 * m + 50))


@given(
    noise=st.floats(0.5, 50),
    rounds=st.integers(1, 200),
    delta=st.sampled_from([1e-3, 1e-5, 1e-7]),
)
def test_epsilon_is_an_upper_bound_and_not_far_from_exact(
    noise: float, rounds: int, delta: float
) -> None:
    exact = exact_epsilon(noise, rounds, delta)
    bound = epsilon(noise, rounds, delta)
    assert bound >= exact * (1 - 1e-9)
    assert bound <= 1.25 * exact + 0.1


def test_epsilon_falls_with_noise_and_grows_with_rounds() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0
    assert epsilon(2.0, 4, 1e-5) < epsilon(1.0, 4, 1e-5) < epsilon(1.0, 5, 1e-5)
    for noise, delta in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 1e-5)):
        with pytest.raises(InputError, match="privacy"):
            epsilon(noise, 1, delta)


def test_without_noise_the_change_is_clipped_to_the_norm() -> None:
    old = {"a": np.float32([1, 2]), "b": np.float32([[3]])}
    new = {"a": np.float32([1, 5]), "b": np.float32([[7]])}
    for clip, expected in ((10.0, 5.0), (2.0, 2.0)):
        sent = privatise(old, new, clip=clip, noise_multiplier=0.0)
        change = {name: sent[name] - old[name] for name in old}
        assert norm(change) == pytest.approx(expected, rel=1e-6)
        assert change["a"][1] / change["b"][0, 0] == pytest.approx(3 / 4, rel=1e-5)
    unchanged = privatise(old, old, clip=1.0, noise_multiplier=0.0)
    np.testing.assert_array_equal(unchanged["a"], old["a"])


def test_the_noise_has_the_promised_size() -> None:
    size = 200_000
    old = {"a": np.zeros(size, np.float32)}
    sent = privatise(old, old, clip=0.5, noise_multiplier=1.2, rng=generator(0, "privacy-test"))[
        "a"
    ]
    deviation = 0.5 * 1.2
    assert abs(float(sent.mean())) < 5 * deviation / math.sqrt(size)
    assert float(sent.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * size))


def test_the_noise_is_never_the_same_twice() -> None:
    old = {"a": np.zeros(100, np.float32)}
    first = privatise(old, old, clip=1.0, noise_multiplier=1.0)["a"]
    second = privatise(old, old, clip=1.0, noise_multiplier=1.0)["a"]
    assert not np.array_equal(first, second)


def test_what_privacy_cannot_be_combined_with_is_refused() -> None:
    private = ["pruning.max_pruning=0.0"]
    require_private_scenario(load_scenario("tiny", private))
    for override, key in (
        ("pruning.max_pruning=0.5", "pruning.max_pruning"),
        ('pruning.cost="measured"', "pruning.cost"),
        ("task.client_eval_examples=2", "task.client_eval_examples"),
    ):
        with pytest.raises(InputError, match=key):
            require_private_scenario(load_scenario("tiny", [*private, override]))


def test_the_option_is_read() -> None:
    read = parse_privacy("clip=0.5, noise=1.2,delta=1e-6,budget=8")
    assert (read.clip, read.noise_multiplier, read.delta, read.max_epsilon) == (0.5, 1.2, 1e-6, 8)
    assert parse_privacy("clip=1,noise=1").max_epsilon is None
    for text, match in (
        ("clip", "clip"),
        ("clip=1", "noise"),
        ("clip=1,noise=x", "noise=x"),
        ("clip=1,noise=-1", "noise"),
        ("clip=1,noise=1,delta=2", "delta"),
        ("clip=1,noise=1,sigma=2", "sigma=2"),
    ):
        with pytest.raises(InputError, match=match):
            parse_privacy(text)
