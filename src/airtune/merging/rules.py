"""The merging rules by name: what each does, where it is from, and what it asks of the rest.

No torch until a rule is called: what a rule puts on the air is planned with. The built-in
functions are in `averages` and `products`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airtune.errors import InputError
from airtune.plugins import Registry, loaded
from airtune.scenario import Scenario

RuleFunction = Callable[..., Any]
"""(server's adapter, contributions) → the new adapter; torch, so its types are in `functions`."""


@dataclass(frozen=True)
class MergingRule:
    """One line on what it does, its source, and what it changes beside the merging.

    Attributes:
        description: in one line.
        source: where it was published.
        merge: (server's adapter, contributions) → the new adapter; `module:name` where it is
            imported on the first call.
        freezes_a: clients neither train nor send A, and it is never broadcast.
        restarts: the round's updates go into the base, and clients begin a new adapter.
        refactors: it makes new factors of the product, which need not lie near the server's: their
            difference is then no direction to go on in.
        coincides: with every entry held by all and equal ranks it is FedIT's weighted average
            (to equal weights, where it does not look at them).
        weighs: an entry is the average by the contributions' weights, so that weights by inclusion
            probability make it unbiased.
    """

    description: str
    source: str
    merge: RuleFunction | str
    freezes_a: bool = False
    restarts: bool = False
    refactors: bool = False
    coincides: bool = False
    weighs: bool = False

    @property
    def function(self) -> RuleFunction:
        """The rule's function, imported now where it was not before."""
        return loaded(self.merge)


_BUILT_IN = {
    "fedit": MergingRule(
        "weighted average of A and of B over the clients that hold an entry",
        "FedIT: Zhang et al., ICASSP 2024",
        "airtune.merging.averages:fedit",
        weighs=True,
        coincides=True,
    ),
    "hetlora": MergingRule(
        "zero-padded factors, weighted by the norm of B·A",
        "HetLoRA: Cho et al., EMNLP 2024 (without its rank self-pruning)",
        "airtune.merging.averages:hetlora",
    ),
    "flora": MergingRule(
        "factors stacked, exact sum of the products, merged into the base; clients restart",
        "FLoRA: Wang et al., NeurIPS 2024",
        "airtune.merging.products:flora",
        restarts=True,
    ),
    "flexlora": MergingRule(
        "weighted sum of the products, its truncated SVD handed out by rank",
        "FlexLoRA: Bai et al., NeurIPS 2024",
        "airtune.merging.products:flexlora",
        refactors=True,
    ),
    "ffa-lora": MergingRule(
        "A stays as it began; weighted average of B",
        "FFA-LoRA: Sun et al., ICLR 2024",
        "airtune.merging.averages:ffa_lora",
        weighs=True,
        freezes_a=True,
    ),
    "heterofl": MergingRule(
        "each entry averaged over the clients that hold it, by sample counts",
        "HeteroFL: Diao et al., ICLR 2021",
        "airtune.merging.averages:heterofl",
        weighs=True,
        coincides=True,
    ),
    "fedmp": MergingRule(
        "R2SP: what a client left out counts as the server's old value, all clients alike",
        "FedMP: Jiang et al., ICDE 2022",
        "airtune.merging.averages:fedmp",
        coincides=True,
    ),
    "fedspallm": MergingRule(
        "each entry averaged over the clients that hold it, all clients alike",
        "FedSpaLLM: Bai et al., NAACL 2025 (held entries marked by masks, not by zeros)",
        "airtune.merging.averages:fedspallm",
        coincides=True,
    ),
}

MERGING: Registry[MergingRule] = Registry("merging rule", "aggregation.rule", _BUILT_IN)
"""Merging rules by name, in the order in which they are listed."""


def merging_rule(
    name: str,
    *,
    description: str,
    source: str = "a plugin",
    freezes_a: bool = False,
    restarts: bool = False,
    refactors: bool = False,
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as a merging rule.

    The function takes the server's adapter (`dict[str, Tensor]`, PEFT's names) and the
    contributions (`airtune.merging.contributions.Contribution`: values, held, weight, steps, in
    the server's shapes) and returns the new adapter. What it returns is checked: the server's
    names and shapes, finite numbers; where `restarts`, the rank may differ.

    Args:
        name: as aggregation.rule names it.
        description: one line for `airtune methods`.
        source: where it was published.
        freezes_a: clients neither train nor send A.
        restarts: the updates go into the base, and clients begin a new adapter each round;
            contributions then have each client's own rank.
        refactors: it makes new factors of the product, as a decomposition does.

    Raises:
        InputError: the name exists already.
    """

    def register(function: RuleFunction) -> RuleFunction:
        rule = MergingRule(
            description,
            source,
            function,
            freezes_a=freezes_a,
            restarts=restarts,
            refactors=refactors,
        )
        MERGING.add(name, rule)
        return function

    return register


def check_deployable(scenario: Scenario) -> None:
    """Refuse what real devices do not do yet; raises `InputError`.

    Where clients restart, what they are sent grows and shrinks with the updates of the round
    before, which no message carries. Devices are away and late by themselves, on a real clock.
    """
    if rule_of(scenario).restarts:
        raise InputError(
            f"aggregation.rule = '{scenario.aggregation.rule}' runs in simulation only, not on "
            "real devices"
        )
    for key, asked in (
        (f"schedule.kind = '{scenario.schedule.kind}'", not scenario.schedule.is_synchronous),
        ("training.scaffold = true", scenario.training.scaffold),
        ("training.optimizer = 'sgd'", scenario.training.optimizer == "sgd"),
    ):
        if asked:
            raise InputError(f"{key} runs in simulation only, not on real devices")
    simulated = {
        "cell.csi_error_db": scenario.cell.csi_error_db,
        "cell.outage_probability": scenario.cell.outage_probability,
        "participation.deadline_slack": scenario.participation.deadline_slack,
        "participation.availability": scenario.participation.availability,
    }
    for key, value in simulated.items():
        if value:
            raise InputError(
                f"{key} = {value!r} is for simulation only: real devices are away and late by "
                "themselves"
            )


def rule_of(scenario: Scenario) -> MergingRule:
    """Return the rule that a scenario asks for.

    Raises:
        InputError: it is unknown, or cannot go with the rest of the scenario.
    """
    name = scenario.aggregation.rule
    rule = MERGING.find(name)
    if scenario.participation.weights == "inclusion" and not rule.weighs:
        allowed = ", ".join(each for each, one in MERGING.items() if one.weighs)
        raise InputError(
            f"participation.weights = 'inclusion' with aggregation.rule = '{name}', which is no "
            f"average by weights; allowed: {allowed}"
        )
    if scenario.training.keep_optimizer and (rule.restarts or rule.freezes_a):
        raise InputError(
            f"aggregation.rule = '{name}' needs training.keep_optimizer = false: "
            "its clients have no moments of both factors to go on from"
        )
    if rule.restarts and scenario.model.quantize is not None:
        raise InputError(
            f"aggregation.rule = '{name}' changes the base weights every round, and weights of "
            f"model.quantize = '{scenario.model.quantize}' cannot hold a small change: "
            "leave out model.quantize"
        )
    if rule.restarts and (bits := scenario.aggregation.downlink_change_bits) is not None:
        raise InputError(
            f"aggregation.rule = '{name}' cannot go with aggregation.downlink_change_bits = "
            f"{bits}: its clients restart, so that no adapter is sent that could have changed"
        )
    if scenario.aggregation.coverage_power > 0:
        _check_coverage(scenario, rule, name)
    if rule.restarts:
        _check_steps_as_done(scenario, name)
    if rule.restarts or rule.refactors:
        _check_steady(scenario, name)
    if rule.freezes_a and len(set(scenario.client_ranks)) > 1:
        raise InputError(
            f"aggregation.rule = '{name}' needs one rank for all: leave out devices.lora_rank"
        )
    return rule


def normalizes_steps(scenario: Scenario) -> bool:
    """Return whether updates are averaged by what they changed per local step (FedNova).

    Without it a client that does fewer steps than the others counts for less. Where these are
    always the same clients, the rounds settle at an optimum that is not the clients' (Wang et al.,
    NeurIPS 2020). By default only rules that average by weights are given normalised updates.

    Raises:
        InputError: the merging rule is unknown.
    """
    given = scenario.aggregation.normalize_steps
    if given is not None:
        return given
    if scenario.participation.rule == "partial-fednova":
        return True
    planned = "steps" in scenario.planning.turned
    drawn = scenario.participation.weights == "inclusion"
    return planned and not drawn and MERGING.find(scenario.aggregation.rule).weighs


def _check_steps_as_done(scenario: Scenario, name: str) -> None:
    """Refuse to normalise steps where clients restart."""
    for key, asked in (
        ("aggregation.normalize_steps = true", scenario.aggregation.normalize_steps),
        (
            "participation.rule = 'partial-fednova'",
            scenario.participation.rule == "partial-fednova",
        ),
    ):
        if asked:
            raise InputError(
                f"aggregation.rule = '{name}' cannot go with {key}: clients that restart have no "
                "common point to normalise their steps from"
            )


def _check_coverage(scenario: Scenario, rule: MergingRule, name: str) -> None:
    """Refuse to move entries by who holds them where the merge is no average by weights."""
    key = f"aggregation.coverage_power = {scenario.aggregation.coverage_power:g}"
    if not rule.weighs:
        allowed = ", ".join(each for each, one in MERGING.items() if one.weighs)
        raise InputError(
            f"{key} cannot go with aggregation.rule = '{name}', which is no average by weights; "
            f"allowed: {allowed}"
        )
    if not scenario.schedule.is_synchronous:
        raise InputError(
            f"{key} cannot go with schedule.kind = '{scenario.schedule.kind}': it looks at the "
            "clients of one merge, and those are few; allowed: synchronous"
        )
    server = scenario.aggregation.server_optimizer
    if server != "none":
        raise InputError(
            f"{key} cannot go with aggregation.server_optimizer = '{server}', whose momentum "
            "would move what is kept"
        )


def _check_steady(scenario: Scenario, name: str) -> None:
    """Refuse what needs the same factors from round to round."""
    server = scenario.aggregation.server_optimizer
    for key, asked in (
        (f"aggregation.server_optimizer = '{server}'", server != "none"),
        ("training.scaffold = true", scenario.training.scaffold),
        ("training.keep_optimizer = true", scenario.training.keep_optimizer),
        ("pruning.refit_every_rounds", scenario.pruning.refit_every_rounds is not None),
    ):
        if asked:
            raise InputError(
                f"{key} cannot go with aggregation.rule = '{name}', whose factors begin anew every "
                "round; allowed: a rule that averages the factors, such as fedit"
            )
