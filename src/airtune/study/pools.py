"""Where a study's runs are done: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from airtune.errors import InputError
from airtune.models.shapes import SHAPES

Task = Mapping[str, Any]
Perform = Callable[[Task], str | None]
PROCESS_BYTES = 0.8e9
"""Of Python, PyTorch and Transformers in one process; measured: 0.5 to 0.7 GB."""
WEIGHT_COPIES = 4.0
"""The base model, a submodel, and room for activations and loading, in copies of the weights."""
WEIGHTS = (".safetensors", ".bin", ".gguf")


class Pool(Protocol):
    """Does tasks; each is named by its key."""

    def start(self, key: str, task: Task) -> None:
        """Begin a task."""

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        """Return the tasks that have ended since the last call, with the error of each or None."""

    def close(self) -> None:
        """End what is still going on."""


class ProcessPool:
    """One process a task, forked from a server that has loaded PyTorch and never used it."""

    def __init__(self, perform: Perform, preload: Iterable[str] = ()) -> None:
        self._perform = perform
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._running: dict[str, BaseProcess] = {}

    def start(self, key: str, task: Task) -> None:
        """Begin a task in a process of its own."""
        process = self._context.Process(target=_exit_with, args=(self._perform, dict(task)))
        process.start()
        self._running[key] = process

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        """Return the tasks whose processes have ended."""
        connection.wait([p.sentinel for p in self._running.values()], timeout_s)
        over = {key: p for key, p in self._running.items() if not p.is_alive()}
        found: dict[str, str | None] = {}
        for key, process in over.items():
            del self._running[key]
            code = process.exitcode
            # 1: `perform` has written down why; anything else: it could not.
            found[key] = None if code == 0 else "" if code == 1 else _death(code)
        return found

    def close(self) -> None:
        """End the processes that still run; their runs can be resumed."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()
        self._running = {}


def _exit_with(perform: Perform, task: Task) -> None:
    raise SystemExit(0 if perform(task) is None else 1)


def _death(code: int | None) -> str:
    signal = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    hint = ": too little memory?" if code == -9 else ""
    return f"its process ended with {signal}{hint}"


class RayPool:
    """One Ray task a run, on this machine or on a cluster whose machines share the folder.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, perform: Perform, *, address: str | None, threads: int, gpus: float) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray needs Ray: pip install 'airtune[ray]'") from None
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False) \
                if address is None else ray.init(address=address, log_to_driver=False)  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"no Ray cluster at '{address}': {line}") from None
        self._ray = ray
        self._remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(perform)
        self._running: dict[Any, str] = {}

    def start(self, key: str, task: Task) -> None:
        """Begin a task wherever Ray has room; until then it waits."""
        self._running[self._remote.remote(dict(task))] = key

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        """Return the tasks that have ended."""
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        found: dict[str, str | None] = {}
        for reference in done:
            key = self._running.pop(reference)
            try:
                found[key] = None if self._ray.get(reference) is None else ""
            except self._ray.exceptions.RayError as error:
                found[key] = str(error).strip().splitlines()[-1]
        return found

    def close(self) -> None:
        """Let go of Ray; tasks that still run end with it."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._ray.shutdown()


def needed_bytes(values: Mapping[str, Any]) -> float | None:
    """Return the memory that a run of this scenario takes at most; None where it is not known.

    A process and four copies of the weights, in the scenario's precision: of a built-in model's
    parameters, or of the weight files in the model's folder. A model of a hub is not known before
    one run has been done.
    """
    model = values["model"]
    per_value = 2 if model["dtype"] == "bfloat16" else 4
    parameters = parameters_of(model["id"])
    if parameters is not None:
        return PROCESS_BYTES + WEIGHT_COPIES * per_value * parameters
    folder = Path(model["id"])
    if not folder.is_dir():
        return None
    # Weights on disk may be in half the precision that they are computed in.
    size = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in WEIGHTS)
    return PROCESS_BYTES + WEIGHT_COPIES * (per_value / 2) * size if size else None


def parameters_of(model: str) -> int | None:
    """Return how many parameters a built-in model has, norms left out; None: it is not built in."""
    shape = SHAPES.get(model)
    if shape is None:
        return None
    embeddings = shape.vocab * shape.head_inputs
    return shape.block_parameters + embeddings * (1 if shape.tied else 2)


def free_bytes() -> float:
    """Return the memory that is free on this machine, caches counted as free."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def free_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
