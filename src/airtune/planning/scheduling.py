"""What goes with which schedule: methods and rules that need synchronous rounds are refused."""

from __future__ import annotations

from dataclasses import dataclass

from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.planning.methods import METHODS
from airtune.scenario import Scenario


@dataclass(frozen=True)
class Schedule:
    """When the server merges, in one line, and its source."""

    description: str
    source: str


SCHEDULES: dict[str, Schedule] = {
    "synchronous": Schedule("a merge once all clients of a round have answered", "FedAvg"),
    "fedbuff": Schedule(
        "a merge every schedule.buffer_size answers, late ones discounted",
        "FedBuff: Nguyen et al., AISTATS 2022",
    ),
    "fedasync": Schedule(
        "each answer mixed into the adapter, late ones discounted", "FedAsync: Xie et al., 2019"
    ),
    "tiers": Schedule(
        "slow clients answer every n-th round", "tiers as in TiFL: Chai et al., HPDC 2020"
    ),
}
"""Schedules by name, in the order in which they are listed."""


def check_parts(scenario: Scenario) -> None:
    """Refuse a planning method or merging rule that needs synchronous rounds.

    Raises:
        InputError: naming the key and what is allowed.
    """
    kind = scenario.schedule.kind
    if scenario.schedule.is_synchronous:
        return
    method, rule = METHODS.find(scenario.planning.method), rule_of(scenario)
    if method.prunes or method.bands == "own":
        allowed = [n for n, m in METHODS.items() if not m.prunes and m.bands != "own"]
        raise InputError(
            f"planning.method = '{scenario.planning.method}' plans synchronous rounds; with "
            f"schedule.kind = '{kind}' allowed are {', '.join(allowed)}"
        )
    if rule.restarts or rule.refactors:
        raise InputError(
            f"aggregation.rule = '{scenario.aggregation.rule}' cannot go with schedule.kind = "
            f"'{kind}': an answer to an older adapter has factors of its own; allowed: a rule that "
            "averages the factors, such as fedit"
        )


def check_has_rounds(scenario: Scenario) -> None:
    """Refuse to plan a round where bands follow from who sends at the moment.

    Raises:
        InputError: the scenario's rounds are not synchronous.
    """
    if not scenario.schedule.is_synchronous:
        raise InputError(
            f"schedule.kind = '{scenario.schedule.kind}' has no round to plan: bands are shared "
            "among those who send at the moment; run it, or plan it with schedule.kind = "
            "'synchronous'"
        )
