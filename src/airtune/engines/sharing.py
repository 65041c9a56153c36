"""Work that several runs of a study have in common, done once.

Two methods that differ in their bands alone train alike; what differs is the clock. A client's
update depends on its job and on a part of the scenario, an evaluation on the adapter and on
another part; both are kept on disk under a hash of all of that, and read back bit by bit. What a
hash leaves out is listed here, a key each, so that a key which is not known here counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from airtune.adapters.names import Adapter
from airtune.engines import Engine
from airtune.merging.rules import rule_of
from airtune.models.structure import Structure
from airtune.models.workload import StepTokens
from airtune.record.provenance import versions
from airtune.scenario import Scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.worker import Evaluation, Federation, MeasuredCosts

NOT_READ = frozenset({
    "name", "description", "time_budget_s", "plugins", "rounds",
    "cell", "planning", "participation", "aggregation",
})  # fmt: skip
"""Keys of the scenario that no client work reads: its results are in the job. `rounds` counts with
a learning rate that depends on it, the merging rule by whether clients restart."""
NOT_READ_OF_A_DEVICE = frozenset({
    "profile", "utilisation", "memory_bytes", "power_dbm", "radio", "energy_budget_j",
    "distance_m", "uplink_trace", "downlink_trace", "lora_rank",
})  # fmt: skip
NOT_READ_IN_TRAINING = frozenset({
    "min_pruning", "max_pruning", "cost", "cache_statistics", "refit_every_rounds",
})  # fmt: skip
"""Of the pruning section: whether statistics are mapped counts where something is left out, and of
the last a job says in which round the text was read."""
FOR_A_CUT = frozenset({"units", "selection", "refit", "refit_examples"})
"""Of the pruning section: read only where something is left out."""
THE_AIR = frozenset({
    "bandwidth_hz", "rate_bps", "downlink_rate_bps", "downlink_bits", "planned",
})  # fmt: skip
"""Of an assignment: what the clock is billed from, and training does not read."""
FOR_STEPS = frozenset({
    "local_steps", "batch_size", "learning_rate", "learning_rate_schedule", "weight_decay",
    "max_grad_norm", "keep_optimizer",
})  # fmt: skip
"""Of the training section: not read in an evaluation."""
_SUFFIX = ".safetensors"


class SharingEngine:
    """Does what another engine does, unless it lies on disk; implements `airtune.engines.Engine`.

    Processes that need the same update at the same time do not both compute it: each first does
    the jobs that no other process holds, then waits for the rest. A failed client is not kept. What
    cannot be read or written is computed here.

    Args:
        engine: does what is not there yet.
        scenario: the run's; without plugins, whose code a hash does not know.
        folder: where all runs of the study keep their work.
        limit_bytes: of disk; the oldest go first.
    """

    def __init__(
        self, engine: Engine, scenario: Scenario, folder: Path, limit_bytes: float
    ) -> None:
        self._engine, self._folder, self._limit_bytes = engine, folder, limit_bytes
        self._scenario = scenario
        self._digested: tuple[Adapter | None, str] = (None, "")
        folder.mkdir(parents=True, exist_ok=True)

    def federation(self) -> Federation:
        """Describe clients, data and model."""
        return self._engine.federation()

    def initial_adapter(self) -> Adapter:
        """Return the adapter that the first round starts from."""
        return self._engine.initial_adapter()

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the size of each local step that a client will do in a round."""
        return self._engine.step_tokens(round, client)

    def present(self) -> frozenset[int] | None:
        """Return the clients that can be asked now."""
        return self._engine.present()

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client, by its own calibration."""
        return self._engine.measured_costs(client)

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs, or read what they came to; in any order."""
        others: list[ClientJob] = []
        for job in jobs:
            try:
                yield self._shared(job, timeout_s=0.0)
            except filelock.Timeout:
                others.append(job)
        for job in others:
            yield self._shared(job, timeout_s=-1.0)

    def evaluate(
        self, adapter: Adapter, *, final: bool, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter, or read what was measured."""
        asked = {
            "adapter": self._digest(adapter),
            "final": final,
            "clients": None if clients is None else list(clients),
            "scenario": self._parts[2],
        }
        path = self._folder / f"{_hash(asked)}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            return Evaluation(found["loss"], found["metrics"], tuple(found["client_losses"]))
        measured = self._engine.evaluate(adapter, final=final, clients=clients)
        with suppress(OSError):
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(asdict(measured)), encoding="utf-8")
            os.replace(temporary, path)
        return measured

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self._engine.save_adapter(adapter, folder)

    def close(self) -> None:
        """Let go of the engine behind."""
        self._engine.close()

    def _shared(self, job: ClientJob, timeout_s: float) -> ClientUpdate | ClientFailure:
        path = self._folder / f"{self._key(job)}{_SUFFIX}"
        found = _read(path, job)
        if found is not None:
            return found
        # Held while this process computes it, and given back by the system where it dies.
        with filelock.FileLock(path.with_suffix(".lock"), timeout=timeout_s):
            found = _read(path, job)
            if found is not None:
                return found
            (outcome,) = self._engine.train([job])
            if isinstance(outcome, ClientUpdate):
                with suppress(OSError, SafetensorError, TypeError):  # a value that JSON has not
                    _write(path, outcome)
                    _make_room(self._folder, self._limit_bytes)
            return outcome

    def _key(self, job: ClientJob) -> str:
        assigned = job.assignment
        asked = {one.name: getattr(job, one.name) for one in fields(job) if one.name != "adapter"}
        assignment = _without(asdict(assigned), THE_AIR)
        return _hash({
            **{name: _described(value) for name, value in asked.items()},
            "adapter": self._digest(job.adapter),
            "assignment": assignment,
            "scenario": self._parts[1 if assigned.pruning > 0 else 0],
        })  # fmt: skip

    @cached_property
    def _parts(self) -> tuple[dict[str, Any], ...]:
        # A scenario names weights and texts by a path or an id: what lies there may change.
        known = self._engine.federation()
        read = {"model": known.model_fingerprint, "texts": known.text_fingerprint}
        return tuple({**part, "read": read} for part in _parts(self._scenario))

    def _digest(self, adapter: Adapter) -> str:
        # All of a round's clients are given the same one.
        if self._digested[0] is not adapter:
            self._digested = (adapter, _digest(adapter))
        return self._digested[1]


def _parts(scenario: Scenario) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what training whole models, training cut ones, and evaluation depend on."""
    values = scenario.model_dump(mode="json")
    kept = {key: value for key, value in values.items() if key not in NOT_READ}
    kept["devices"] = [_without(device, NOT_READ_OF_A_DEVICE) for device in values["devices"]]
    kept["computed by"] = {
        "versions": versions(),
        "torch": [torch.__version__, torch.get_num_threads(), torch.get_default_dtype().__repr__()],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    pruning = _without(values["pruning"], NOT_READ_IN_TRAINING)
    training = {
        **kept,
        "pruning": _without(pruning, FOR_A_CUT),
        "restarts": rule_of(scenario).restarts,
    }
    if values["training"]["learning_rate_schedule"] != "constant":
        training["rounds"] = values["rounds"]
    # Mapped statistics are the same bits at other addresses, and are summed in another order.
    mapped = scenario.pruning.cache_statistics or scenario.participation.draws
    cutting = {**training, "pruning": pruning, "mapped": mapped}
    evaluation = {
        **kept,
        "pruning": _without(pruning, FOR_A_CUT),
        "training": _without(values["training"], FOR_STEPS),
    }
    return training, cutting, evaluation


def _without(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _hash(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _described(value: Any) -> str:
    """Return a part of a job for its hash: tensors by name as a digest, others as text."""
    if is_dataclass(value):
        return " ".join(_described(getattr(value, one.name)) for one in fields(value))
    return _digest(value) if isinstance(value, Mapping) else str(value)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _write(path: Path, update: ClientUpdate) -> None:
    found = {one.name: getattr(update, one.name) for one in fields(update)}
    named = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    values = {
        **found,
        "structure": asdict(update.structure),
        # In the order that they were computed in.
        **{name: list(value) for name, value in named.items()},
        "tensors": list(named),
    }
    tensors = {
        f"{of}|{name}": value for of, every in named.items() for name, value in every.items()
    }
    temporary = path.with_suffix(f".{os.getpid()}")
    copied = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(copied, temporary, {"update": json.dumps(values)})
    os.replace(temporary, path)


def _read(path: Path, job: ClientJob) -> ClientUpdate | None:
    """Return an update as it was computed; None where it is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["update"])
            if (values["round"], values["client"]) != (job.round, job.client):
                return None
            for of in values.pop("tensors"):
                values[of] = {name: file.get_tensor(f"{of}|{name}") for name in values[of]}
            kept = {name: tuple(map(tuple, of)) for name, of in values["structure"].items()}
            return ClientUpdate(**{**values, "structure": Structure(**kept)})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _make_room(folder: Path, limit_bytes: float) -> None:
    """Remove the oldest updates until the rest fits."""
    files = [(path, path.stat()) for path in folder.glob(f"*{_SUFFIX}")]
    total = sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda one: one[1].st_mtime):
        if total <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size
