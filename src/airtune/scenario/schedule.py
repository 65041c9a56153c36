"""When the server merges: once all clients have answered, or as their answers arrive."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from airtune.scenario import bounds
from airtune.scenario.section import NonNegativeFloat, PositiveInt, Section

if TYPE_CHECKING:
    from airtune.scenario.schema import Scenario

_KINDS_WITH = {
    "concurrency": ("fedbuff", "fedasync"),
    "buffer_size": ("fedbuff",),
    "staleness_exponent": ("fedbuff", "fedasync", "tiers"),
    "mixing": ("fedasync",),
    "tier_rounds": ("tiers",),
}
"""Of each key that not all kinds read, the kinds that do."""


class ScheduleSection(Section):
    """When the server merges, and what a late answer counts: docs/asynchronous.md."""

    kind: Literal["synchronous", "fedbuff", "fedasync", "tiers"] = "synchronous"
    """`synchronous`: once all have answered. `fedbuff`: every `buffer_size` answers. `fedasync`:
    each answer by itself. `tiers`: slow clients answer every n-th round."""
    concurrency: Annotated[PositiveInt, bounds.COUNT_OF_CLIENTS] | None = None
    """`fedbuff`, `fedasync`: clients at work at a time; default: all."""
    buffer_size: Annotated[PositiveInt, bounds.COUNT_OF_CLIENTS] | None = None
    """`fedbuff`: answers of a merge; default: half of the concurrency, at least 1."""
    staleness_exponent: Annotated[NonNegativeFloat, bounds.FACTOR_OR_NONE] = 0.5
    """a of the discount (1 + tau)^-a of an answer whose adapter is tau merges old; 0: none."""
    mixing: Annotated[float, Field(gt=0, le=1)] = 0.6
    """`fedasync`: share of an answer without staleness in the next adapter."""
    tier_rounds: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (1, 2)
    """`tiers`: every how many rounds each tier answers, the fastest tier first; tiers have equally
    many clients."""

    @model_validator(mode="after")
    def _own_keys(self) -> ScheduleSection:
        for key, kinds in _KINDS_WITH.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.kind not in kinds:
                shown = list(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"{key} = {shown} has no effect with kind = '{self.kind}'; it is for "
                    f"{', '.join(kinds)}"
                )
        steps = self.tier_rounds
        rising = all(low < high for low, high in itertools.pairwise(steps))
        if not steps or steps[0] != 1 or not rising or steps[-1] > 1000:
            raise ValueError(
                f"tier_rounds = {list(steps)} must begin with 1 and rise to 1,000 at most, as in "
                "[1, 2, 4]: the fastest tier answers every round"
            )
        return self

    @property
    def is_synchronous(self) -> bool:
        """Whether every round waits for all of its clients."""
        return self.kind == "synchronous"


def check_schedule(scenario: Scenario) -> None:
    """Refuse what no asynchronous run does; raises `ValueError`."""
    schedule = scenario.schedule
    if schedule.is_synchronous:
        return
    clients = sum(device.count for device in scenario.devices)
    if schedule.concurrency is not None and schedule.concurrency > clients:
        raise ValueError(
            f"schedule.concurrency = {schedule.concurrency} is above the number of clients, "
            f"{clients}"
        )
    training, cell, taking_part = scenario.training, scenario.cell, scenario.participation
    refused = {
        f"participation.rule = '{taking_part.rule}'": taking_part.rule != "all",
        f"participation.cohort = {taking_part.cohort}": taking_part.cohort is not None,
        "participation.availability": taking_part.availability is not None,
        "participation.deadline_slack": taking_part.deadline_slack is not None,
        "participation.weights = 'inclusion'": taking_part.weights != "examples",
        "cell.csi_error_db": bool(cell.csi_error_db),
        "cell.csi_margin_db": bool(cell.csi_margin_db),
        "cell.outage_probability": bool(cell.outage_probability),
        "aggregation.downlink_change_bits": scenario.aggregation.downlink_change_bits is not None,
        "aggregation.normalize_steps = true": scenario.aggregation.normalize_steps is True,
        "planning.knobs": scenario.planning.knobs is not None,
        "planning.fit_kappa = true": scenario.planning.fit_kappa,
        "planning.max_pruning_loss": scenario.planning.max_pruning_loss is not None,
        "training.keep_optimizer = true": training.keep_optimizer,
        "training.scaffold = true": training.scaffold,
        "pruning.refit_every_rounds": scenario.pruning.refit_every_rounds is not None,
        f"cell.subcarrier_spacing_hz = {cell.subcarrier_spacing_hz}": cell.subcarrier_spacing_hz
        is not None,
        "devices.energy_budget_j": any(d.energy_budget_j is not None for d in scenario.devices),
    }
    for key, asked in refused.items():
        if asked:
            raise ValueError(
                f"{key} cannot be combined with schedule.kind = '{schedule.kind}': it is for "
                "synchronous rounds"
            )
