"""Who takes part in a round: the cohort, its rule, its weights, and its deadline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from airtune.scenario import bounds
from airtune.scenario.section import Section

BY_CHANNEL = ("channel", "proportional-fair")
"""Rules that look at the round's channel: a client has no probability of its own to be drawn."""


class ParticipationSection(Section):
    """Who takes part in a round, and with how many of its local steps."""

    rule: Literal["all", "partial", "partial-fednova", "deadline", "in-turn"] = "all"
    """A name from `airtune methods`."""
    every_rounds: Annotated[int, Field(ge=2), bounds.ROUNDS] = 2
    """`in-turn`: in every n-th round no client sits out."""
    left_out_cost: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What a client that sits a round out costs in learning, on the scale of e(rho)."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a full contribution that every client makes at least, over the rounds: the plan
    gives a client more weight the longer it has contributed less. With planning.knobs only."""
    fairness: Annotated[float, Field(ge=0, le=10)] = 0.0
    """How much more a client weighs in the plan that has contributed less so far: w/x^fairness, x
    its mean contribution. 0 plans for the mean of the clients' progress, 2 for the mean number of
    rounds that each of them needs. With planning.knobs only."""
    cohort: int | float | None = None
    """Clients that take part in a round: a whole number of them, or a share of all above 0 and at
    most 1 (written with a point: 1.0 is all of them). Default: all that are available."""
    cohort_by: Literal["uniform", "data-size", "round-robin", "channel", "proportional-fair"] = (
        "uniform"
    )
    """How the cohort is drawn: docs/cohorts.md."""
    availability: str | None = None
    """A CSV file with the columns client,from_s,to_s: when on the virtual clock a client is there.
    A client without a line never is."""
    too_few: Literal["wait", "fewer"] = "wait"
    """Where fewer clients are available than the cohort has: wait for the others on the virtual
    clock, or go on with those that are there."""
    weights: Literal["examples", "inclusion"] = "examples"
    """Of the updates in the average: by examples; or also over the probability that the client is
    drawn and its upload arrives, which makes the merged change unbiased."""
    deadline_slack: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Given: an upload that ends later than this times the planned length of the round is lost."""

    @field_validator("cohort", mode="before")
    @classmethod
    def _number_or_share(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        share = isinstance(value, float) and 0 < value <= 1
        if not (value is None or whole or share):
            raise ValueError(
                f"{value!r}; allowed: a whole number of clients from 1 on, or a share above 0 and "
                "at most 1, such as 0.1"
            )
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> ParticipationSection:
        if self.cohort is None and self.cohort_by != "uniform":
            raise ValueError(f"cohort_by = '{self.cohort_by}' has no effect without cohort")
        if self.availability is None and self.too_few != "wait":
            raise ValueError(f"too_few = '{self.too_few}' has no effect without availability")
        if self.rule != "in-turn" and self.every_rounds != 2:
            raise ValueError(
                f"every_rounds = {self.every_rounds} has no effect with rule = '{self.rule}'; it "
                "is for in-turn"
            )
        if self.rule == "all" and self.left_out_cost != 1:
            raise ValueError(
                f"left_out_cost = {self.left_out_cost:g} has no effect with rule = 'all'; it is "
                "for partial, partial-fednova, deadline, in-turn"
            )
        if self.floor and self.fairness:
            raise ValueError(
                f"floor = {self.floor:g} cannot be combined with fairness = {self.fairness:g}: "
                "both weigh the clients by what they contributed; leave one of them out"
            )
        if self.weights == "inclusion":
            self._check_inclusion()
        return self

    def _check_inclusion(self) -> None:
        if self.cohort_by in BY_CHANNEL:
            raise ValueError(
                f"weights = 'inclusion' with cohort_by = '{self.cohort_by}': no probability of "
                "being drawn is known; allowed: uniform, data-size, round-robin"
            )
        if self.cohort_by == "round-robin" and self.availability is not None:
            raise ValueError(
                "weights = 'inclusion' with cohort_by = 'round-robin' and availability: no "
                "probability of being drawn is known; allowed with availability: uniform, data-size"
            )
        if self.rule != "all":
            raise ValueError(
                f"weights = 'inclusion' with rule = '{self.rule}': a plan that leaves work out is "
                "no draw with a known probability; allowed: all"
            )

    @property
    def draws(self) -> bool:
        """Whether not every client takes part in every round."""
        return self.cohort is not None or self.availability is not None

    def size(self, clients: int) -> int:
        """Return how many of a number of clients a cohort has: of a share the nearest, at least 1.

        Without `cohort` it is all of them.
        """
        if self.cohort is None:
            return clients
        if isinstance(self.cohort, int):
            return self.cohort
        return max(1, round(self.cohort * clients))
