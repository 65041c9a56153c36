"""Client-rounds a second of simulators on one workload, beside a loop that only trains.

100 clients, 10 a round, whole models, the same batches, the same loss (logits at answer tokens
only), AdamW and bound of the gradient's norm for all:

    bare            PyTorch and nothing else: one model with PEFT's layers, one optimiser, batches
                    made beforehand; nothing is sent, reset or merged. The limit.
    local, ray-1    airtune's engines: batches drawn, adapters placed, trained, merged
    local-pruned    the same with half of each client's model cut and refitted
    step            airtune's whole round: channel, plan, training, merge, bills
    flower          Flower's simulation, FedAvg, one client at a time
    pfl             pfl-research's simulation, FedAvg; name a Python that has it (--pfl-python)

Each runs in a process of its own, and between its rounds it runs the bare loop, so that a ratio is
of one process at one time. Processor time is that of all processes it has started; on a machine
that is busy with other work it says more than wall time.

    python benchmarks/simulation.py --workloads tiny smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from airtune.assignment import Assignment, Mode
from airtune.merging.functions import Contribution, merge
from airtune.models.structure import whole
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientJob, ClientUpdate, answer_token_loss
from airtune.training.placements import Placements
from airtune.training.worker import Worker

OUT = Path(__file__).parent / "results" / "simulation.json"
CLIENTS, COHORT = 100, 10
COHORT_SET = f"participation.cohort={COHORT}"
SYSTEMS = ("bare", "local", "local-pruned", "step", "ray-1", "flower", "pfl")
WORKLOADS = {
    "tiny": ("devices.0.count=98", "task.train_examples=2048", "pruning.max_pruning=0", COHORT_SET),
    "smollm2": (
        "devices.0.count=98",
        "task.train_examples=2048",
        "pruning.max_pruning=0",
        COHORT_SET,
        # The work of the built-in scenario `demo`.
        "model.id=smollm2-135m-instruct",
        "task.name=gsm-symbolic",
        "task.max_tokens=128",
        "training.local_steps=2",
        "training.batch_size=4",
        "training.lora_rank=8",
        "training.lora_alpha=16",
    ),
}


def scenario_of(workload: str) -> Scenario:
    return load_scenario("tiny", WORKLOADS[workload])


def cohort(round: int) -> list[int]:
    """Return the clients of a round, counted from 1: the next ten."""
    return [((round - 1) * COHORT + k) % CLIENTS for k in range(COHORT)]


class Bare:
    """The limit: one model, one optimiser, batches made beforehand."""

    def __init__(self, worker: Worker, rounds: int) -> None:
        scenario = worker.scenario
        section = scenario.training
        self.bound = section.max_grad_norm
        self.batches = [
            worker.batches(round, client, section.local_steps)
            for round in range(1, rounds + 1)
            for client in cohort(round)
        ]
        config = worker._config(section.lora_rank)
        structure = whole(worker.shape)
        # Left open on purpose: the layers stay in place for as long as the process lives.
        placements = Placements(worker._model, worker.shape)
        self._open = placements.submodel(structure, config, worker.initial_adapter())
        placed, self.named = self._open.__enter__()
        self.model = placed.peft_model
        parameters = list(self.named.values())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=section.learning_rate, weight_decay=section.weight_decay
        )
        self.parameters = parameters

    def __call__(self, round: int) -> None:
        """Train all clients of a round, counted from 1."""
        for batches in self.batches[(round - 1) * COHORT : round * COHORT]:
            for batch in batches:
                self.optimizer.zero_grad(set_to_none=True)
                answer_token_loss(self.model, batch).backward()
                nn.utils.clip_grad_norm_(self.parameters, self.bound)
                self.optimizer.step()


def jobs(scenario: Scenario, worker: Worker, round: int, adapter: Any, pruning: float) -> Any:
    """Yield a round's jobs: whole modes on clients of equal links."""
    section = scenario.training
    mode = Mode(section.local_steps, section.lora_rank, bits_per_value=16)
    for client in cohort(1 if pruning else round):
        yield ClientJob(round, Assignment(client, mode, pruning, 1e6, 1e6, 1e6, 1e6), adapter)


def engine_round(engine: Any, scenario: Scenario, worker: Worker, pruning: float) -> Any:
    """Return a function that does a round: sizes, training, merge."""
    from airtune.adapters.slices import scatter_adapter

    state = {"adapter": engine.initial_adapter()}

    def one(round: int) -> None:
        made = list(jobs(scenario, worker, round, state["adapter"], pruning))
        for job in made:
            engine.step_tokens(round, job.client)
        contributions = []
        for update in engine.train(made):
            assert isinstance(update, ClientUpdate), update
            values, held = scatter_adapter(update.adapter, update.structure, worker.shape)
            contributions.append(Contribution(values, held, float(update.examples)))
        state["adapter"] = merge("fedit", state["adapter"], contributions)

    return one


def step_round(scenario: Scenario) -> Any:
    """Return a function that does a whole round of airtune."""
    from airtune.rounds import begin, open_cell, step

    cell = open_cell(scenario)
    state = begin(cell)

    def one(round: int) -> None:
        nonlocal state
        state, _ = step(cell, state)

    return one


def alternating(
    system: Callable[[int], None], bare: Bare, rounds: int, clients: int, *, tree: bool
) -> dict[str, Any]:
    """Time rounds of a system and of the bare loop in turn, after one of each."""
    system(1)
    bare(1)
    taken: dict[str, list[tuple[float, float]]] = {"system": [], "bare": []}
    for round in range(2, rounds + 1):
        for name, one in (("bare", bare), ("system", system)):
            clock = tree_cpu_s if tree and name == "system" else time.thread_time
            begin = time.perf_counter(), clock()
            one(round)
            end = time.perf_counter(), clock()
            each = clients if name == "system" else COHORT
            taken[name].append(((end[0] - begin[0]) / each, (end[1] - begin[1]) / each))
    return summed(taken["system"], taken["bare"])


def summed(system: list[tuple[float, float]], bare: list[tuple[float, float]]) -> dict[str, Any]:
    """Put together seconds a client-round (wall, processor) of a system and of the bare loop."""
    wall_s, cpu_s = (median(values) for values in zip(*system, strict=True))
    bare_wall_s, bare_cpu_s = (median(values) for values in zip(*bare, strict=True))
    return {
        "client_rounds_per_wall_s": 1 / wall_s,
        "client_rounds_per_cpu_s": 1 / cpu_s,
        "cpu_ms": 1e3 * cpu_s,
        "bare_cpu_ms": 1e3 * bare_cpu_s,
        "overhead_cpu_ms": 1e3 * (cpu_s - bare_cpu_s),
        "share_of_arithmetic_cpu": bare_cpu_s / cpu_s,
        "share_of_arithmetic_wall": bare_wall_s / wall_s,
        "rounds": len(system),
    }


def tree_cpu_s() -> float:
    """Return the processor seconds of this process and of all that it has started."""
    ticks = 0
    for process in _tree():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of children that ended
    return ticks / os.sysconf("SC_CLK_TCK")


def tree_peak_bytes() -> int:
    """Return the sum of the peaks of resident memory of this process and those it has started."""
    total = 0
    for process in _tree():
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total


def _tree() -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += parents.get(process, [])
    return found


def one_system(system: str, workload: str, rounds: int, device: str) -> dict[str, Any]:
    """Measure a system in this process."""
    torch.set_num_threads(1)
    scenario = scenario_of(workload)
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: this machine has no CUDA device")
    worker = Worker(scenario, device=device)
    bare = Bare(worker, rounds)
    if system in ("flower", "pfl"):
        import simulation_peers

        result = simulation_peers.measure(system, workload, worker, bare, rounds)
    elif system == "bare":
        result = alternating(bare, bare, rounds, COHORT, tree=False)
    elif system == "step":
        result = alternating(step_round(scenario), bare, rounds, COHORT, tree=False)
    elif system == "ray-1":
        import simulation_peers
        from airtune.engines.ray import RayEngine

        simulation_peers.start_ray()
        engine: Any = RayEngine(scenario, workers=1, threads=1)
        one = engine_round(engine, scenario, worker, 0.0)
        result = alternating(one, bare, rounds, COHORT, tree=True)
    else:
        from airtune.engines.local import LocalEngine

        engine = LocalEngine(scenario, threads=1, device=device)
        one = engine_round(engine, scenario, worker, 0.5 if system == "local-pruned" else 0.0)
        result = alternating(one, bare, rounds, COHORT, tree=False)
    result["peak_bytes"] = tree_peak_bytes()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=6, help="the first one is not counted")
    parser.add_argument("--device", default="cpu", help="cuda: not measured yet")
    parser.add_argument("--pfl-python", default=sys.executable, help="a Python that has pfl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2, the first is not counted")
    if options.one:
        (workload,) = options.workloads
        print(json.dumps(one_system(options.one, workload, options.rounds, options.device)))
        return
    results: dict[str, dict[str, Any]] = {}
    for workload in options.workloads:
        for system in options.systems:
            python = options.pfl_python if system == "pfl" else sys.executable
            command = [python, "-W", "ignore", __file__, "--one", system, "--workloads", workload]
            command += ["--rounds", str(options.rounds), "--device", options.device]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = ended.stdout.strip().splitlines()
            if ended.returncode:
                tail = ended.stderr.strip().splitlines()[-1:]
                case: dict[str, Any] = {"failed": tail[0] if tail else str(ended.returncode)}
            else:
                case = json.loads(lines[-1])
            results.setdefault(workload, {})[system] = case
            print(workload, system, json.dumps(case), flush=True)
    report = {
        "command": "python benchmarks/simulation.py "
        f"--workloads {' '.join(options.workloads)} --rounds {options.rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a process",
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        "workloads": results,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
