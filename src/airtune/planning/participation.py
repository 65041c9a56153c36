"""Who takes part in a round and with how much of its work: rules that joint pruning competes with.

Each is a set of knobs that the one planner turns (`airtune.planning.round_plan`), at costs in
proportion to the work left out: e = 1 − (computing done)/(computing), and e = `left_out_cost` for
a client that sits out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParticipationRule:
    """What a rule does, in one line, its source, and what it lets the plan turn."""

    description: str
    source: str
    knobs: frozenset[str] = frozenset()
    for_pruning: bool = False
    """Its knobs stand in for pruning, which is then not planned."""


PARTICIPATION: dict[str, ParticipationRule] = {
    "all": ParticipationRule("every client does all of its local steps", "FedAvg"),
    "partial": ParticipationRule(
        "slow clients do fewer local steps on the whole model, by the optimal plan",
        "FedProx: Li et al., MLSys 2020 (its proximal term: training.proximal_mu)",
        frozenset({"steps"}),
        for_pruning=True,
    ),
    "partial-fednova": ParticipationRule(
        "the same, updates normalised by their steps",
        "FedNova: Wang et al., NeurIPS 2020",
        frozenset({"steps"}),
        for_pruning=True,
    ),
    "deadline": ParticipationRule(
        "clients sit the round out, by the optimal plan",
        "FedCS: Nishio and Yonetani, ICC 2019",
        frozenset({"absence"}),
    ),
    "in-turn": ParticipationRule(
        "the same, but every client takes part in every n-th round",
        "baseline: everyone's data is heard",
        frozenset({"absence"}),
    ),
}
"""Participation rules by name, in the order in which they are listed."""
