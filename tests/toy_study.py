"""A study whose runs take no model: `python toy_study.py FOLDER JOBS [METHOD_THAT_FAILS]`.

Its runs are made-up rounds that depend on method and seed alone, each on disk before the next, so
that a test can kill the study at any moment and look at what a second call makes of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import fake_record
from airtune.errors import RunError
from airtune.record import RunDirectory
from airtune.study import Study, load_study
from airtune.study.apart import performed
from airtune.study.comparison import compare
from airtune.study.conduct import conduct
from airtune.study.pools import ProcessPool
from airtune.study.tables import write_tables

ROUND_S = 0.02


def perform(task: Mapping[str, Any]) -> str | None:
    """Do as `airtune.rounds.apart.perform`, with these runs in place of real ones.

    Without PyTorch, so that a study can be started many times in a test.
    """
    return performed(_run, task)


def _run(folder: Path, task: Mapping[str, Any]) -> None:
    values, method = task["values"], task["values"]["planning"]["method"]
    if method == os.environ.get("TOY_DIES"):
        os._exit(9)
    begun = (folder / "run.json").is_file()
    opened = RunDirectory.resume if begun else RunDirectory.create
    with opened(folder, scenario_values=values, method=method) as directory:
        if directory.finished:
            return
        directory.describe(fake_record.description(fake_record.scenario_values(2, 1)))
        template = fake_record.rounds(fake_record.scenario_values(2, 1))[0]
        checkpoint = directory.load_checkpoint()
        start = 0 if checkpoint is None else checkpoint.round
        for round in range(start + 1, values["rounds"] + 1):
            if method == os.environ.get("TOY_FAILS") and round == 2:
                raise RunError("round 2: no client's update could be used")
            time.sleep(ROUND_S)
            rng = np.random.default_rng([values["seed"], round, len(method)])
            loss = 2.0 / round + 0.1 * float(rng.random())
            if method == os.environ.get("TOY_DIVERGES"):
                loss = float("nan")
            elapsed_s = (5.0 + len(method)) * round
            directory.append_round(
                replace(template, round=round, elapsed_s=elapsed_s, eval_loss=loss)
            )
            directory.save_checkpoint(round, {"walk": np.zeros(3)}, {"elapsed_s": elapsed_s})
        directory.finish()


def study() -> Study:
    return load_study("tiny")


def main(folder: Path, jobs: int) -> None:
    print("begun", flush=True)

    def pool() -> ProcessPool:
        return ProcessPool(perform, preload=["toy_study"])

    results = conduct(study(), folder, pool, at_once=jobs, threads=1)
    write_tables(results, compare(results), folder / "tables")


if __name__ == "__main__":
    # Named as the pool's processes know it, so that `perform` can be sent to them.
    sys.path.insert(0, str(Path(__file__).parent))
    import toy_study

    toy_study.main(Path(sys.argv[1]), int(sys.argv[2]))
