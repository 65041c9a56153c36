"""What the user writes: TOML, overrides and built-in files, read into a frozen `Scenario`."""

from airtune.scenario.aggregation import AggregationSection
from airtune.scenario.loading import builtin_scenarios, load_scenario, scenario_from_dict
from airtune.scenario.schedule import ScheduleSection
from airtune.scenario.schema import (
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
    names_of_clients,
)
from airtune.scenario.tasks import TASKS, TaskSource, task

__all__ = [
    "TASKS",
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
    "ScheduleSection",
    "Section",
    "TaskSection",
    "TaskSource",
    "TrainingSection",
    "builtin_scenarios",
    "load_scenario",
    "names_of_clients",
    "scenario_from_dict",
    "task",
]
