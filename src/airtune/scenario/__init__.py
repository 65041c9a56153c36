"""What the user writes: TOML, overrides and built-in files, read into a frozen `Scenario`."""

from airtune.scenario.loading import builtin_scenarios, load_scenario, scenario_from_dict
from airtune.scenario.schema import (
    AggregationSection,
    CellSection,
    DeviceSection,
    EvaluationSection,
    ModelSection,
    ParticipationSection,
    PartitionSection,
    PlanningSection,
    PruningSection,
    Scenario,
    Section,
    TaskSection,
    TrainingSection,
)

__all__ = [
    "AggregationSection",
    "CellSection",
    "DeviceSection",
    "EvaluationSection",
    "ModelSection",
    "ParticipationSection",
    "PartitionSection",
    "PlanningSection",
    "PruningSection",
    "Scenario",
    "Section",
    "TaskSection",
    "TrainingSection",
    "builtin_scenarios",
    "load_scenario",
    "scenario_from_dict",
]
