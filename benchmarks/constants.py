"""What the planner's tuning constants are worth: each is changed, and what that costs is counted.

    python benchmarks/constants.py          # a minute; random problems, 36 without modes, 20 with

Prints for each value how many deadlines (without modes) or nodes (with modes) were evaluated, the
largest gap, processor time, and by how much an objective moved. A line with * is as it stands. Then
how many turns the loops take that have a most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from airtune.planning import PlanningProblem, plan
from airtune.planning.optimum import modes_search, nodes, polish, prices, search
from mode_oracles import mode_problem
from oracles import random_problem

WITHOUT_MODES = (
    (search, "_SHARE", (0.2, 0.8)),
    (search, "_CAUTION", (0.6, 0.8, 1.0)),
    (search, "_LEAST_SHARE", (0.1,)),
    (search, "_MAX_PSI", (1.5, 30.0)),
    (search, "_FIRST_REACH", (1e-4, 1e-1)),
    (search, "_DESCENT_SHARE", (0.005, 0.4)),
    (search, "_MAX_DESCENT", (15, 1000)),
    (search, "_ALL_KEPT", (0.0, 1e-4)),
)
WITH_MODES = (
    (modes_search, "_SHARE", (0.5, 0.99)),
    (modes_search, "_FIRST_RATIO", (1.03, 1.5)),
    (modes_search, "_WIDE", (1.002, 1.2)),
    (prices, "_MAX_TURNS", (8, 12, 60)),
    (prices, "_FIRST_STEPS", (2, 10)),
    (prices, "_STEPS", (1, 5)),
    (prices, "_SETTLED", (1e-6,)),
    (polish, "_POINTS", (5, 17)),
    (polish, "_MAX_ROUNDS", (4, 40)),
    (polish, "_WIDE", (1.02, 3.0)),
)


def solved(problems: Sequence[PlanningProblem]) -> tuple[int, float, float, np.ndarray]:
    """Return what was evaluated, the largest gap, processor time in s, and the objectives in s."""
    began = time.process_time()
    plans = [plan(problem) for problem in problems]
    took = time.process_time() - began
    gap = max(made.gap or 0.0 for made in plans)
    objectives = np.array([made.objective_s for made in plans])
    return sum(made.deadlines for made in plans), gap, took, objectives


def compare(
    module: ModuleType, name: str, values: Sequence[float], problems: Sequence[PlanningProblem]
) -> None:
    stands = getattr(module, name)
    expected: np.ndarray | None = None
    for value in (stands, *values):
        setattr(module, name, value)
        evaluated, gap, took, found = solved(problems)
        expected = found if expected is None else expected
        moved = float(np.abs(found / expected - 1.0).max())
        what = f"{module.__name__.rpartition('.')[2]}.{name} = {value!r}{'*' * (value == stands)}"
        print(
            f"{what:38} {evaluated:5} evaluated, gap {gap:.2e}, {took:.2f} s, J moved {moved:.1e}"
        )
    setattr(module, name, stands)


def count_turns(plain: Sequence[PlanningProblem], modes: Sequence[PlanningProblem]) -> None:
    """Print how many turns descents, tightenings, prices and polished plans take."""
    turns: dict[str, list[int]] = {
        "_descend": [],
        "_tightest": [],
        "best_prices": [],
        "polished": [],
    }
    calls = {"at_price": 0, "_plans_at": 0}

    def counted(module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def call(*given: Any) -> Any:
            calls[name] += 1
            return real(*given)

        setattr(module, name, call)

    def measured(module: ModuleType, name: str, inner: str | None) -> None:
        real = getattr(module, name)

        def call(*given: Any) -> Any:
            before = given[0].solved if inner is None else calls[inner]
            answer = real(*given)
            taken = (given[0].solved if inner is None else calls[inner]) - before
            turns[name] += [taken] if taken else []
            return answer

        setattr(module, name, call)

    counted(prices, "at_price")
    counted(polish, "_plans_at")
    measured(search, "_descend", None)
    measured(search, "_tightest", None)
    measured(nodes, "best_prices", "at_price")
    measured(polish, "best_prices", "at_price")
    measured(modes_search, "polished", "_plans_at")
    bounded = []
    for problem in plain:
        least, most = (problem.pruning_loss(x) for x in (problem.min_pruning, problem.max_pruning))
        bounded.append(replace(problem, max_pruning_loss=least + 0.4 * (most - least)))
    rng = np.random.default_rng(9)
    budgets = [
        mode_problem(rng, k, 3, absent=0.7, budgets=1.0) for k in (3, 5, 8) for _ in range(5)
    ]
    for problem in (*plain, *modes, *bounded, *budgets):
        plan(problem)
    for name, taken in turns.items():
        print(f"{name}: {len(taken)} calls, median {np.median(taken):g} turns, most {max(taken)}")


def main() -> None:
    rng = np.random.default_rng(5)
    plain = [random_problem(rng, k) for k in (2, 3, 5, 8, 20, 60) for _ in range(6)]
    rng = np.random.default_rng(7)
    modes = [mode_problem(rng, k, 4, absent=0.7) for k in (3, 5, 8, 12) for _ in range(5)]
    solved([plain[0], modes[0]])  # imports and caches
    for module, name, values in WITHOUT_MODES:
        compare(module, name, values, plain)
    for module, name, values in WITH_MODES:
        compare(module, name, values, modes)
    count_turns(plain, modes)


if __name__ == "__main__":
    main()
