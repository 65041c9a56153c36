"""The round loop on a virtual clock: open a cell, begin, step; `run` keeps a run directory."""

from airtune.planning.inputs import Situation
from airtune.rounds.cell import Cell, Decision, open_cell
from airtune.rounds.loop import begin
from airtune.rounds.running import run
from airtune.rounds.state import State
from airtune.rounds.stepping import step

__all__ = ["Cell", "Decision", "Situation", "State", "begin", "open_cell", "run", "step"]
