"""What a study file says, as frozen, checked values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["joint", "baseline", "rival", "ablation"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Settings = dict[str, Any]
"""Keys of the scenario, dotted, with their values."""


class Part(BaseModel):
    """A table of the study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Budget(Part):
    """How long each method is followed: rounds, or a time on the virtual clock.

    With `virtual_s` a run ends with the first round that ends at or after this time, and with the
    rounds of `rounds` at the latest; then `rounds` has to be given, too.
    """

    rounds: PositiveInt | None = None
    """None: the scenario's."""
    virtual_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Budget:
        if self.virtual_s is not None and self.rounds is None:
            raise ValueError("virtual_s needs rounds beside it: the most that a run may have")
        return self


class StudyMethod(Part):
    """One method: what it changes in the scenario, nothing else."""

    set: Settings = {}
    """Keys of the scenario with their values."""
    kind: Kind = "joint"
    """`baseline`: may set the target; `rival`: a baseline that is given what the joint plans have,
    and sets no target; `ablation`: a joint plan without one of its parts."""
    ranks_by_speed: bool = False
    """Slower devices get a lower LoRA rank."""
    rounds_factor: PositiveFloat = 1.0
    """Rounds as a multiple of the budget's, for methods whose rounds are short."""
    tuned_as: str | None = None
    """Another method whose searched values it takes; None: a search of its own."""


class StudyAxis(Part):
    """One thing to vary: named points, each with its settings over the scenario."""

    points: Annotated[dict[str, Settings], Field(min_length=1)]


class Search(Part):
    """A small grid search before the study: every combination of the keys' values.

    Each candidate is run once, with the search's own seed, and judged by the loss on held-out
    training examples: the test examples are not read.
    """

    keys: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    rounds: PositiveInt
    """The budget of a candidate, stated; a method with a rounds factor has that many times more."""
    seed: Seed = 1000
    judged_on: str = "held-out"

    @model_validator(mode="after")
    def _not_on_the_test_set(self) -> Search:
        if self.judged_on != "held-out":
            raise ValueError(
                f"judged_on = '{self.judged_on}': a search is judged on 'held-out' training "
                "examples only, never on the test set"
            )
        touched = [key for key in self.keys if key.startswith(("task.", "evaluation.", "seed"))]
        if touched:
            raise ValueError(
                f"'{touched[0]}' decides what a run is judged on or with: a search varies keys of "
                "training, planning, pruning, participation or aggregation"
            )
        return self


class Study(Part):
    """A base scenario, named methods, seeds, and what else is varied."""

    name: Name
    description: str = ""
    base: str
    """The base scenario: a file, or the name of a built-in one."""
    base_values: dict[str, Any]
    """The scenario's own values, as read from `base`."""
    set: Settings = {}
    """Keys changed for every method."""
    methods: Annotated[dict[Name, StudyMethod], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)]
    axes: dict[str, StudyAxis] = {}
    crossed: bool = False
    """Vary the axes together (every combination) instead of one at a time."""
    search: Search | None = None
    tuned: dict[str, Settings] = {}
    """A method's values from an earlier search, in place of `search`."""
    budget: Budget = Budget()
    shared_bytes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2e9
    """Disk for work that several runs have in common, so that it is done once; 0: none."""
    reference: str | None = None
    """The method that all others are compared with; None: the best baseline."""

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        names = list(self.methods)
        if self.tuned and self.search is not None:
            raise ValueError("give 'search' or 'tuned', the values of an earlier one, not both")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference = '{self.reference}': allowed are {', '.join(names)}")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds: {twice[0]} is given twice")
        if self.search is not None and self.search.seed in self.seeds:
            raise ValueError(
                f"seeds: {self.search.seed} is the search's own seed: what is tuned on it is not "
                "tested on it"
            )
        return self
