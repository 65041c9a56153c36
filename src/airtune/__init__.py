"""airtune: low-latency federated fine-tuning of language models over wireless networks.

    import airtune as at
    scenario = at.load_scenario("tiny")
    record = at.run(scenario, out="runs/tiny")

Names are loaded when first used, so that planning and reading records never import torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from airtune.channel import ChannelState, channel_model
    from airtune.errors import InputError, RunError
    from airtune.merging import merging_rule
    from airtune.planning import Plan, PlanningProblem, plan, planning_method, problem_from_json
    from airtune.record import Record, read_record
    from airtune.report import write_report
    from airtune.rounds import Cell, Decision, Situation, State, begin, open_cell, run, step
    from airtune.scenario import Scenario, load_scenario, task

# PEFT imports bitsandbytes where it is installed, which then warns that it found no kernel package.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOME = {
    "ChannelState": "channel",
    "InputError": "errors",
    "Plan": "planning",
    "PlanningProblem": "planning",
    "Record": "record",
    "RunError": "errors",
    "Scenario": "scenario",
    "channel_model": "channel",
    "load_scenario": "scenario",
    "merging_rule": "merging",
    "plan": "planning",
    "planning_method": "planning",
    "problem_from_json": "planning",
    "read_record": "record",
    "task": "scenario",
    "Cell": "rounds",
    "Decision": "rounds",
    "Situation": "rounds",
    "State": "rounds",
    "begin": "rounds",
    "open_cell": "rounds",
    "run": "rounds",
    "step": "rounds",
    "write_report": "report",
}

__all__ = [
    "Cell",
    "ChannelState",
    "Decision",
    "InputError",
    "Plan",
    "PlanningProblem",
    "Record",
    "RunError",
    "Scenario",
    "Situation",
    "State",
    "__version__",
    "begin",
    "channel_model",
    "load_scenario",
    "merging_rule",
    "open_cell",
    "plan",
    "planning_method",
    "problem_from_json",
    "read_record",
    "run",
    "step",
    "task",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("airtune")
    if name not in _HOME:
        raise AttributeError(f"module 'airtune' has no attribute '{name}'")
    return getattr(import_module(f"airtune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
