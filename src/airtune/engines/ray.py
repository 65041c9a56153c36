"""Workers in processes of their own, on this machine or on a Ray cluster (`airtune[ray]`).

Every worker loads the base model once and can do any client's work. A worker that dies is
replaced, and the job that it had is done again: jobs carry all they depend on, so that the
record does not show it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from airtune.adapters.names import Adapter
from airtune.engines.packing import Packed, packed, unpacked
from airtune.errors import InputError, RunError
from airtune.models.workload import StepTokens
from airtune.scenario import Scenario, scenario_from_dict
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate, failure_of
from airtune.training.sizes import TextSizes, step_tokens
from airtune.training.worker import Evaluation, Federation, MeasuredCosts, Worker

ANSWER_S = 5.0
"""How long an address may take to answer."""
ATTEMPTS = 3
"""How often a job is given out before its client counts as failed."""


class _RemoteWorker:
    """What runs in each of Ray's processes."""

    def __init__(self, scenario_values: dict[str, Any], threads: int, device: str | None) -> None:
        import torch

        torch.set_num_threads(threads)
        self._scenario_values, self._device = scenario_values, device

    @cached_property
    def _worker(self) -> Worker:
        # Built by the first call and not by __init__: there its refusal would come out as the
        # death of an actor, here as the error that it is.
        return Worker(scenario_from_dict(self._scenario_values), device=self._device)

    def train(
        self, job: ClientJob, adapter: Packed, moments: Packed | None, read_in: Packed | None
    ) -> tuple[ClientUpdate | ClientFailure, Packed | None, Packed | None]:
        state = None if moments is None else unpacked(moments)
        if job.refit is not None and read_in is not None:
            job = replace(job, refit=replace(job.refit, adapter=unpacked(read_in)))
        try:
            update = self._worker.train(
                replace(job, adapter=unpacked(adapter), optimizer_state=state)
            )
        except (RuntimeError, ArithmeticError, MemoryError) as error:
            return failure_of(job, error), None, None
        kept = update.optimizer_state
        return (
            replace(update, adapter={}, optimizer_state=None),
            packed(update.adapter),
            None if kept is None else packed(kept),
        )

    def text_sizes(self) -> tuple[TextSizes, ...]:
        return self._worker.text_sizes

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._worker, name)(*arguments, **options)

    def federation(self) -> Federation:
        return self._worker.federation

    def close(self) -> None:
        if "_worker" in self.__dict__:
            self._worker.close()

    def process_id(self) -> int:
        return os.getpid()


class RayEngine:
    """Spreads the clients of a round over Ray actors; implements `airtune.engines.Engine`.

    Args:
        scenario: whose clients to work for.
        workers: processes; default: one a core, and no more than clients in a round.
        address: of a running cluster; None starts Ray on this machine.
        gpus_per_worker: share of a GPU that each worker takes, e.g. 0.25.
        threads: of each worker; default: this machine's cores over the workers. The last
            digits of a float32 sum depend on it, so records are compared at equal threads.

    Raises:
        InputError: Ray is not installed, the cluster does not answer, or a number is not allowed.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        threads: int | None = None,
    ) -> None:
        self._scenario = scenario
        clients = scenario.cohort_size
        cores = os.cpu_count() or 1
        count = workers if workers is not None else min(cores, clients)
        if count < 1:
            raise InputError(f"--workers {count}: must be 1 or more")
        if not 0 <= gpus_per_worker <= 8:
            raise InputError(f"--gpus-per-worker {gpus_per_worker}: must be from 0 to 8")
        self._ray, self._owns_ray = _started(address, count)
        try:
            _check_resources(self._ray.cluster_resources(), count, gpus_per_worker, address)
        except InputError:
            if self._owns_ray:
                self._ray.shutdown()
            raise
        self._remote = self._ray.remote(_RemoteWorker)
        self._options = {"num_cpus": 1 if address else 0, "num_gpus": gpus_per_worker}
        device = "cuda" if gpus_per_worker > 0 else "cpu"
        each = threads or max(1, cores // count)
        self._arguments = (scenario.model_dump(mode="json"), each, device)
        self._workers = [self._new_worker() for _ in range(count)]

    def _new_worker(self) -> Any:
        return self._remote.options(**self._options).remote(*self._arguments)

    def federation(self) -> Federation:
        """Describe clients, data and model."""
        federation: Federation = self._ask("federation")
        return federation

    def initial_adapter(self) -> Adapter:
        """Return the adapter that the first round starts from."""
        adapter: Adapter = self._ask("call", "initial_adapter")
        return adapter

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the size of each local step that a client will do in a round."""
        return step_tokens(self._scenario, self._text_sizes[client], round, client)

    @cached_property
    def _text_sizes(self) -> tuple[TextSizes, ...]:
        sizes: tuple[TextSizes, ...] = self._ask("text_sizes")
        return sizes

    def present(self) -> frozenset[int] | None:
        """Return None: every client can be asked."""
        return None

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client, by its own calibration."""
        costs: MeasuredCosts = self._ask("call", "measured_costs", client)
        return costs

    def evaluate(
        self, adapter: Adapter, *, final: bool = False, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter."""
        evaluation: Evaluation = self._ask(
            "call", "evaluate", adapter, final=final, clients=clients
        )
        return evaluation

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format; the folder must be one that workers can reach."""
        self._ask("call", "save_adapter", adapter, folder)

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs on all workers at once; yield each outcome as it ends.

        A client's jobs go to the same worker where that is free, since it has the client's
        calibration; otherwise to whichever is.
        """
        waiting = deque(jobs)
        if not waiting:
            return
        # The adapters are the same in every job: they are put on the object store once.
        adapter = self._ray.put(packed(waiting[0].adapter))
        refit = next((job.refit for job in waiting if job.refit is not None), None)
        read_in = None if refit is None else self._ray.put(packed(refit.adapter))
        attempts: dict[int, int] = {}
        running: dict[Any, tuple[int, ClientJob]] = {}
        idle = list(range(len(self._workers)))
        while waiting or running:
            while waiting and idle:
                index, job = self._matched(waiting, idle)
                idle.remove(index)
                waiting.remove(job)
                running[self._given_out(index, job, adapter, read_in)] = (index, job)
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            index, job = running.pop(done)
            try:
                yield _outcome(*self._got(done))
            except self._ray.exceptions.RayActorError:
                self._workers[index] = self._new_worker()
                attempts[job.client] = attempts.get(job.client, 0) + 1
                if attempts[job.client] >= ATTEMPTS:
                    yield ClientFailure(job.client, f"its worker died {ATTEMPTS} times")
                else:
                    waiting.appendleft(job)
            idle.append(index)

    def _given_out(self, index: int, job: ClientJob, adapter: Any, read_in: Any) -> Any:
        state, refit = job.optimizer_state, job.refit
        light = replace(
            job,
            adapter={},
            optimizer_state=None,
            change=None,
            refit=None if refit is None else replace(refit, adapter={}),
        )
        moments = None if state is None else packed(state)
        return self._workers[index].train.remote(light, adapter, moments, read_in)

    def _matched(self, waiting: deque[ClientJob], idle: list[int]) -> tuple[int, ClientJob]:
        for job in waiting:
            home = job.client % len(self._workers)
            if home in idle:
                return home, job
        return idle[0], waiting[0]

    def close(self) -> None:
        """Stop the workers, and Ray where this engine started it."""
        closing = [worker.close.remote() for worker in self._workers]
        if closing:  # a killed process removes no temporary files
            self._ray.wait(closing, num_returns=len(closing), timeout=ANSWER_S)
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        if self._owns_ray:
            self._ray.shutdown()

    def _got(self, answer: Any) -> Any:
        """Return a worker's answer; its `InputError` or `RunError` as if it were raised here."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (InputError, RunError)):
                raise error.cause from None
            raise

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Ask the first worker; one that died is replaced and asked again."""
        for _ in range(ATTEMPTS):
            try:
                remote = getattr(self._workers[0], method)
                return self._got(remote.remote(*arguments, **options))
            except self._ray.exceptions.RayActorError:
                self._workers[0] = self._new_worker()
        raise RunError(f"a worker died {ATTEMPTS} times: is there enough memory for the model?")


def _outcome(
    outcome: ClientUpdate | ClientFailure, adapter: Packed | None, moments: Packed | None
) -> ClientUpdate | ClientFailure:
    """Put together what a worker took apart for the way."""
    if isinstance(outcome, ClientFailure) or adapter is None:
        return outcome
    state = None if moments is None else unpacked(moments)
    return replace(outcome, adapter=unpacked(adapter), optimizer_state=state)


def _started(address: str | None, workers: int) -> tuple[Any, bool]:
    """Return Ray, started or connected, and whether that was done here and not before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'airtune[ray]'") from None
    if address is None and ray.is_initialized():
        return ray, False
    if address is not None:
        _check_answers(address)
    try:
        if address is None:
            ray.init(
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "AF_UNIX" in line:
            line += "; give a short folder in the variable RAY_TMPDIR, e.g. /tmp"
        where = "Ray does not start here" if address is None else f"no Ray cluster at '{address}'"
        raise InputError(f"{where}: {line}") from None
    return ray, True


def _check_answers(address: str) -> None:
    """Refuse a host and port that does not answer: Ray itself would wait without an end."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like: Ray looks on this machine, and says at once what it finds
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise InputError(f"no Ray cluster at '{address}': {reason} (--address)") from None


def _check_resources(
    there: Mapping[str, float], workers: int, gpus_per_worker: float, address: str | None
) -> None:
    """Refuse workers for which the cluster has no room: Ray would wait for it without an end."""
    whose = "this machine" if address is None else f"the cluster at '{address}'"
    gpus = there.get("GPU", 0.0)
    # A worker is on one machine: shares of a GPU fill each GPU by whole workers.
    if gpus_per_worker > 0:
        a_gpu = int(1.0 / gpus_per_worker + 1e-9) if gpus_per_worker <= 1 else 1.0 / gpus_per_worker
        room = int(gpus * a_gpu + 1e-9)
        if room < workers:
            raise InputError(
                f"--gpus-per-worker {gpus_per_worker:g}: {workers} workers need more than the "
                f"{gpus:g} GPUs that {whose} has, which is room for {room}: set --workers, or "
                "leave --gpus-per-worker out"
            )
    cpus = there.get("CPU", 0.0)
    if address is not None and cpus < workers:
        raise InputError(
            f"--workers {workers}: {whose} has {cpus:g} CPUs, and each worker takes one"
        )
