"""How submodels are cut, and refitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from airtune.scenario import bounds
from airtune.scenario.section import PositiveInt, Section

if TYPE_CHECKING:
    from airtune.scenario.schema import Scenario


class PruningSection(Section):
    """How submodels are cut."""

    max_pruning: Annotated[float, Field(ge=0, lt=1)] = 0.6
    """The largest share of the decoder blocks' parameters that a client may leave out."""
    min_pruning: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share that every client leaves out at least, to the nearest unit. Equal to max_pruning:
    all clients train the same submodel, where they have one order of units (calibration = "shared",
    selection = "importance")."""
    rates: Literal["own", "common"] = "own"
    """Whether each client has a rate of its own, or all those in a round have the same one, which
    the plan chooses anew each round. It needs planning.knobs with `pruning`, planning.method =
    "exact", and one order of units (calibration = "shared", selection = "importance")."""
    units: Literal["mixed", "mlp", "attention", "blocks"] = "mixed"
    """What is cut: MLP channels, attention groups, both (`mixed`), or whole blocks."""
    selection: Literal["importance", "rolling", "rotating"] = "importance"
    """Which units a submodel keeps: the most important ones; a window that rolls over the rounds
    (FedRolex); or by importance, but those near the threshold exchanged by round and client."""
    refit: bool = True
    """Refit the output projections on the calibration text after the cut."""
    calibration: Literal["own", "shared"] = "own"
    """Whose text: each client's own, which its device reads before the first round and is billed
    for, or the server's, read beforehand; its statistics then lie on every device beside the
    base model, and like the base model they are not billed."""
    calibration_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] = 32
    """Texts that the importance of units is computed from."""
    refit_every_rounds: PositiveInt | None = None
    """Given: every so many rounds clients read the calibration text again, in the model as it is
    trained by then, and refit by that; billed. Default: they refit to the model before training."""
    refit_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] | None = None
    """How many of the calibration texts are read again; default: all."""
    cost: Literal["linear", "measured"] = "linear"
    """Learning cost of pruning: e(rho) = rho, or the curve of the client's calibration."""
    cache_statistics: bool = False
    """Keep calibration statistics on disk for later runs (SmolLM2-135M: 160 MB a client)."""

    @model_validator(mode="after")
    def _check_rates(self) -> PruningSection:
        if self.min_pruning > self.max_pruning:
            raise ValueError(
                f"min_pruning = {self.min_pruning:g} is above max_pruning = {self.max_pruning:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_refits(self) -> PruningSection:
        if self.refit_every_rounds is None:
            if self.refit_examples is not None:
                raise ValueError("refit_examples is read only with refit_every_rounds")
            return self
        if not self.refit or self.units == "blocks":
            raise ValueError(
                "refit_every_rounds needs refit = true and units other than 'blocks', whose "
                "stand-ins are fitted before training alone"
            )
        if (self.refit_examples or 0) > self.calibration_examples:
            raise ValueError(
                f"refit_examples = {self.refit_examples} is more than calibration_examples = "
                f"{self.calibration_examples}"
            )
        return self


def check_refits(scenario: Scenario) -> None:
    """Refuse to read text again in quantised weights or in a cohort; raises `ValueError`."""
    if scenario.pruning.refit_every_rounds is None:
        return
    if scenario.model.quantize is not None:
        raise ValueError(
            "pruning.refit_every_rounds cannot go with model.quantize = "
            f"'{scenario.model.quantize}': text is read in the base model with the adapter added, "
            "which packed weights cannot take"
        )
    if scenario.participation.draws:
        raise ValueError(
            "pruning.refit_every_rounds cannot go with participation.cohort or availability: "
            "clients that are not in the round would not read"
        )


def check_common_rate(scenario: Scenario) -> None:
    """Refuse one rate for all where no plan chooses it, or units differ; raises `ValueError`."""
    section = scenario.pruning
    if section.rates == "own":
        return
    planning = scenario.planning
    for asked, given, allowed in (
        (
            "pruning" in planning.turned,
            "planning.knobs left out"
            if planning.knobs is None
            else f"planning.knobs = {list(planning.knobs)}",
            "knobs with 'pruning' among them",
        ),
        (
            planning.method == "exact",
            f"planning.method = '{planning.method}'",
            "planning.method = 'exact'",
        ),
        (
            section.calibration == "shared",
            f"pruning.calibration = '{section.calibration}'",
            "'shared', so that all have one order of units",
        ),
        (
            section.selection == "importance",
            f"pruning.selection = '{section.selection}'",
            "'importance', so that all have one order of units",
        ),
    ):
        if not asked:
            raise ValueError(f"pruning.rates = 'common' cannot go with {given}; allowed: {allowed}")
