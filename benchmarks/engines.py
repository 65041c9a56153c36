"""Time rounds of the same scenario under each engine: overhead, and speed-up with workers.

python benchmarks/engines.py --scenario demo --rounds 2 --out benchmarks/results/engines.json

Every engine does the same jobs with one thread a process, so that the records are equal and the
cores are shared by workers alone. Of each engine's rounds after the first (which loads the model
and calibrates) it reports the wall time, the time that workers spent on clients' work, and

    busy = client work / (workers x wall time)        overhead = 1 - busy

over the part of the round that the engine does, evaluation and planning apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from airtune.engines import Engine
from airtune.engines.local import LocalEngine
from airtune.engines.ray import RayEngine
from airtune.rounds.running import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate


class Timed:
    """An engine that notes how long each round's jobs took, and how long clients worked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.rounds: list[tuple[float, float]] = []

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs as the engine does, with a watch in hand."""
        begin = time.perf_counter()
        outcomes = list(self._engine.train(jobs))
        wall_s = time.perf_counter() - begin
        work_s = sum(o.wall_s for o in outcomes if isinstance(o, ClientUpdate))
        self.rounds.append((wall_s, work_s))
        yield from outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def measure(scenario: Scenario, make: Callable[[], Engine], workers: int) -> dict[str, Any]:
    begin = time.perf_counter()
    engine = Timed(make())
    with tempfile.TemporaryDirectory() as folder:
        run(scenario, out=Path(folder) / "run", engine=engine)
        lines = (Path(folder) / "run" / "rounds.jsonl").read_text().splitlines()
    engine.close()
    total_s = time.perf_counter() - begin
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["wall_s"]
    later = engine.rounds[1:]
    wall_s, work_s = (sum(values) / len(later) for values in zip(*later, strict=True))
    return {
        "workers": workers,
        "round_s": wall_s,
        "client_work_s": work_s,
        "busy": work_s / (workers * wall_s),
        "total_s": total_s,
        "record": records,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scenario", default="tiny")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2, the first is not counted")
    overrides = [f"rounds={options.rounds}", f"evaluation.every_rounds={options.rounds}"]
    scenario = load_scenario(options.scenario, overrides)
    torch.set_num_threads(1)
    cases = {"local": measure(scenario, lambda: LocalEngine(scenario), 1)}
    for count in options.workers:
        cases[f"ray-{count}"] = measure(
            scenario, lambda count=count: RayEngine(scenario, workers=count, threads=1), count
        )
    local = cases["local"]
    for case in cases.values():
        case["same_record"] = case["record"] == local["record"]
        case["speed_up"] = local["round_s"] / case["round_s"]
    for case in cases.values():
        del case["record"]
    result = {
        "command": f"python benchmarks/engines.py --scenario {options.scenario} "
        f"--rounds {options.rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cases": cases,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
