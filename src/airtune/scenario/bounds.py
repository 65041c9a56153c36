"""How large and how small a number in a scenario may be, and why.

Checked one by one, before anything is counted, drawn or repeated by them.
"""

from __future__ import annotations

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from airtune.units import LEAST_BANDWIDTH_HZ, LEAST_TOLERANCE

MOST_CLIENTS = 100_000
"""Of a run together: each is a row of every table and of every round's record."""
MOST_EXAMPLES = 10_000_000
MOST_STEPS = 100_000
MOST_CHOICES = 16
"""Values of one knob: a client has a mode for each combination of its knobs' values."""
MOST_EXAMPLES_A_ROUND = 10_000_000
"""local_steps × batch_size: a client's draw of examples is one list."""


def between(low: float, high: float, why: str) -> AfterValidator:
    """Return the check of `low` <= value <= `high`; the refusal says why."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise PydanticCustomError(
                "out_of_bounds", f"must be from {_number(low)} to {_number(high)} ({why})"
            )
        return value

    return AfterValidator(check)


def choices(low: int, high: int, why: str) -> AfterValidator:
    """Return the check of a short list without repetition of numbers from `low` to `high`."""

    def check(values: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(values) <= MOST_CHOICES:
            raise PydanticCustomError(
                "out_of_bounds",
                f"must have 1 to {MOST_CHOICES} values (each of them is planned for each client)",
            )
        for value in values:
            if not low <= value <= high:
                raise PydanticCustomError(
                    "out_of_bounds",
                    f"each must be from {_number(low)} to {_number(high)} ({why})",
                )
        if len(set(values)) < len(values):
            raise PydanticCustomError("out_of_bounds", "must not have the same value twice")
        return values

    return AfterValidator(check)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}" if value < 10**9 else f"{float(value):g}"
    return f"{value:g}"


COUNT_OF_CLIENTS = between(1, MOST_CLIENTS, "each client is a row of every round's record")
COUNT_OF_EXAMPLES = between(1, MOST_EXAMPLES, "examples are held in memory")
COUNT_OR_NONE = between(0, MOST_EXAMPLES, "examples are held in memory")
COUNT_OF_STEPS = between(1, MOST_STEPS, "a client's steps are counted one by one")
ROUNDS = between(1, 1_000_000, "each round is a line of the record")
RANK = between(1, 4096, "a larger rank than a model's width adds nothing")
RANKS = choices(1, 4096, "a larger rank than a model's width adds nothing")
STEPS = choices(1, MOST_STEPS, "a client's steps are counted one by one")
CHOICES = choices(2, 8, "in bits")
TOKENS = between(8, 2**20, "no model reads more")
ALPHA = between(1e-4, 1e6, "outside of it the draws of a Dirichlet distribution lose their digits")
TOLERANCE = between(LEAST_TOLERANCE, 1.0, "64-bit sums do not tell smaller gaps apart")
LEARNING_RATE = between(1e-12, 1e3, "32-bit weights do not change, or overflow")
FACTOR = between(1e-12, 1e12, "32-bit numbers vanish or overflow outside of it")
FACTOR_OR_NONE = between(0, 1e3, "a larger exponent leaves nothing")
DECAY = between(0, 1e3, "a larger one leaves nothing of the weights")
COST = between(0, 1e6, "kappa Q must stay below 1")
BANDWIDTH_HZ = between(
    LEAST_BANDWIDTH_HZ, 1e12, "in Hz; the narrowest mobile uplink has 3750 Hz; is it in MHz?"
)
POWER_DBM = between(-1000.0, 1000.0, "in dBm: 23 dBm are 0.2 W")
NOISE_DBM_HZ = between(-1000.0, 1000.0, "in dBm/Hz: thermal noise has -174")
SPREAD_DB = between(0.0, 1000.0, "in dB")
DISTANCE_M = between(0.1, 1e6, "in metres")
MEMORY_BYTES = between(1e5, 1e16, "in bytes: 8 GB are 8e9")
EFFICIENCY = between(1e-3, 100.0, "in bit/s/Hz: 1024-QAM carries less than 10")
