"""How clients' adapters become the next one: merging, precision on the air, server optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from airtune.scenario import bounds
from airtune.scenario.section import PositiveFloat, Section

if TYPE_CHECKING:
    from airtune.scenario.schema import Scenario


class AggregationSection(Section):
    """How the clients' adapters are merged, and in what precision they are sent."""

    rule: str = "fedit"
    """A merging rule from `airtune methods`."""
    payload_bits_per_value: Literal[16, 32] = 16
    """Bits of an adapter value in a message."""
    uplink_change_bits: Literal[2, 4, 8] | None = None
    """Given: uplinks carry the adapter's change, rounded at random to this many bits a value, with
    a 32-bit scale for each rank of A and B in each layer. Of the broadcasts, only flora's is
    rounded too."""
    downlink_change_bits: Literal[2, 4, 8] | None = None
    """Given: the broadcast carries the adapter's change in this many bits a value to clients that
    heard the round before, and the whole adapter to those that did not."""
    normalize_steps: bool | None = None
    """Undo in the average that clients did different numbers of local steps, so that an update
    counts by what it changed per step (FedNova). Default: where planning.knobs turns `steps`
    and the rule averages by weights; and with participation.rule = "partial-fednova"."""
    coverage_power: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Some units are in only part of a round's submodels. Let c be the share of the weight that has
    a unit: its adapter entries move by c^coverage_power times their mean change. 0: by all of it
    (HeteroFL). 1: the others count as no change. Large: almost only units move that all have."""
    server_optimizer: Literal["none", "momentum", "adam"] = "none"
    """What the server makes of a merge: the merged adapter itself, or a step of FedAvgM or FedAdam
    along the difference between it and the adapter before."""
    server_learning_rate: Annotated[PositiveFloat, bounds.LEARNING_RATE] | None = None
    """Of the server's step; default: 1 (momentum), 0.01 (adam)."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """beta of FedAvgM, beta_1 of FedAdam."""
    server_second_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """beta_2 of FedAdam."""
    server_adaptivity: Annotated[PositiveFloat, bounds.FACTOR] = 1e-3
    """tau of FedAdam, which bounds its steps from above."""

    @model_validator(mode="after")
    def _of_the_server(self) -> AggregationSection:
        if self.server_optimizer == "none" and self.server_learning_rate is not None:
            raise ValueError(
                f"server_learning_rate = {self.server_learning_rate:g} has no effect with "
                "server_optimizer = 'none'"
            )
        return self

    @property
    def server_rate(self) -> float:
        """The server's learning rate, given or by default."""
        default = 0.01 if self.server_optimizer == "adam" else 1.0
        return self.server_learning_rate or default

    @property
    def uplink_bits_per_value(self) -> int:
        """Bits of a value in an uplink message."""
        return self.uplink_change_bits or self.payload_bits_per_value

    @property
    def uplink_bits_per_scale(self) -> int:
        """Bits of each rank's scale in an uplink message, 0 where values are sent unchanged."""
        return 32 if self.uplink_change_bits else 0


def check_steps(scenario: Scenario) -> None:
    """Refuse what contradicts that steps are normalised, or not; raises `ValueError`."""
    given, participation = scenario.aggregation.normalize_steps, scenario.participation
    if participation.rule == "partial-fednova" and given is False:
        raise ValueError(
            "aggregation.normalize_steps = false contradicts participation.rule = "
            "'partial-fednova'; without it: 'partial'"
        )
    if participation.weights == "inclusion" and given:
        raise ValueError(
            "aggregation.normalize_steps = true cannot be combined with participation.weights = "
            "'inclusion': the mean number of steps depends on who was drawn"
        )


def check_training(scenario: Scenario) -> None:
    """Refuse local training that cannot go with the rest of a scenario; raises `ValueError`."""
    training, few_bits = scenario.training, scenario.aggregation.uplink_change_bits
    if training.optimizer == "sgd" and training.keep_optimizer:
        raise ValueError(
            "training.keep_optimizer = true is allowed with training.optimizer = 'adamw' only: "
            "plain SGD has no moments to keep"
        )
    if training.keep_optimizer and "rank" in scenario.planning.turned:
        raise ValueError(
            "training.keep_optimizer = true cannot be combined with the knob 'rank' of "
            "planning.knobs: moments are kept for the ranks that they were made at"
        )
    if training.scaffold and scenario.aggregation.downlink_change_bits is not None:
        raise ValueError(
            "training.scaffold = true cannot be combined with aggregation.downlink_change_bits: "
            "control variates are broadcast as values"
        )
    if training.scaffold and few_bits is not None:
        raise ValueError(
            f"training.scaffold = true cannot be combined with aggregation.uplink_change_bits = "
            f"{few_bits}: control variates are sent as values"
        )
    if training.scaffold and "bits" in scenario.planning.turned:
        raise ValueError(
            "training.scaffold = true cannot be combined with the knob 'bits' of planning.knobs: "
            "control variates are sent as values"
        )
