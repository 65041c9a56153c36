"""The workload of `simulation.py` in Flower's simulation and in pfl-research's."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from airtune.adapters.lora import adapted
from airtune.training.client import answer_token_loss
from airtune.training.worker import Worker


def measure(system: str, workload: str, worker: Worker, bare: Any, rounds: int) -> dict[str, Any]:
    """Measure a peer; the bare loop runs between its rounds, at the server's end of each."""
    with contextlib.redirect_stdout(sys.stderr):
        if system == "flower":
            return _flower(workload, worker, bare, rounds)
        return _pfl(worker, bare, rounds)


class Watch:
    """Notes what each round took since the one before, and what the bare loop takes in between."""

    def __init__(self, bare: Any, clients: int) -> None:
        self.bare, self.clients, self.round = bare, clients, 0
        self.system: list[tuple[float, float]] = []
        self.alone: list[tuple[float, float]] = []
        self.begun: tuple[float, float] | None = None

    def round_ended(self) -> None:
        """Note that the system's round is over; the next begins when this returns."""
        import simulation

        now = time.perf_counter(), simulation.tree_cpu_s()
        self.round += 1
        if self.begun is not None:  # the first round is not counted
            self.system.append(self._each(self.begun, now))
        begun = time.perf_counter(), time.thread_time()
        self.bare(self.round)
        if self.begun is not None:
            ended = time.perf_counter(), time.thread_time()
            self.alone.append(self._each(begun, ended))
        self.begun = time.perf_counter(), simulation.tree_cpu_s()

    def _each(self, begun: tuple[float, float], now: tuple[float, float]) -> tuple[float, float]:
        return (now[0] - begun[0]) / self.clients, (now[1] - begun[1]) / self.clients


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _flower(workload: str, worker: Worker, bare: Any, rounds: int) -> dict[str, Any]:
    """Run FedAvg on 100 virtual clients, one at a time, as Flower's examples write it.

    The model is loaded once a process and kept, which is the best that an app can do.
    """
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    import simulation

    client = ClientApp()
    folder = os.path.dirname(os.path.abspath(__file__))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        import simulation_peers

        return simulation_peers.flower_client(workload, rounds, message, context)

    watch, server = Watch(bare, simulation.COHORT), ServerApp()

    class Watched(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            bad = [reply for reply in replies if reply.has_error()]
            if bad:
                raise RuntimeError(str(bad[0].error))
            answer = super().aggregate_train(server_round, replies)
            watch.round_ended()
            return answer

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        share = simulation.COHORT / simulation.CLIENTS
        start = {name: value for name, value in worker.initial_adapter().items()}
        strategy = Watched(fraction_train=share, fraction_evaluate=0.0)
        strategy.start(grid=grid, initial_arrays=ArrayRecord(start), num_rounds=rounds)

    start_ray()
    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, simulation.CLIENTS, backend_config=backend)
    if len(watch.system) < rounds - 1:
        raise RuntimeError(f"Flower did {len(watch.system)} of {rounds - 1} rounds")
    return simulation.summed(watch.system, watch.alone)


def start_ray() -> None:
    """Start Ray with room for one worker, whose processes find what this one finds."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)


_OPEN: dict[str, Any] = {}


def flower_client(workload: str, rounds: int, message: Any, context: Any) -> Any:
    """Train one client in Flower's process: set the arrays, train, answer."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    import simulation

    if not _OPEN:
        torch.set_num_threads(1)
        worker = Worker(simulation.scenario_of(workload), device="cpu")
        rank = worker.scenario.training.lora_rank
        opened = adapted(worker._model, worker._config(rank), worker.initial_adapter())
        model = opened.__enter__()
        model.train()
        named = {n.replace(".default.", "."): p for n, p in _trainable(model).items()}
        _OPEN.update(worker=worker, opened=opened, model=model, named=named)
    worker, model, named = (_OPEN[key] for key in ("worker", "model", "named"))
    arrays = message.content["arrays"].to_torch_state_dict()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(arrays[name])
    section = worker.scenario.training
    me = int(context.node_config["partition-id"])
    round = int(message.content["config"]["server-round"])
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate, weight_decay=0.0)
    losses = []
    for batch in worker.batches(round, me, section.local_steps):
        loss = answer_token_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, section.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    metrics = {"loss": sum(losses) / len(losses), "num-examples": len(worker._train_data[me])}
    content = {
        "arrays": ArrayRecord({name: p.detach() for name, p in named.items()}),
        "metrics": MetricRecord(metrics),
    }
    return Message(content=RecordDict(content), reply_to=message)


def _pfl(worker: Worker, bare: Any, rounds: int) -> dict[str, Any]:
    """Run FedAvg with `SimulatedBackend`, in this process."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    import simulation

    section = worker.scenario.training
    rank = section.lora_rank
    watch = Watch(bare, simulation.COHORT)

    class Texts(Dataset):
        """A user's batches of the round, one a step; drawn as airtune draws them."""

        def __init__(self, user: int) -> None:
            super().__init__((), user_id=str(user))
            drawn = worker.batches(watch.round + 1, user, section.local_steps)
            self._drawn = [(batch.input_ids, batch.labels) for batch in drawn]
            self._rows = len(worker._train_data[user])

        def __len__(self) -> int:
            return self._rows

        def iter(self, batch_size: int | None) -> Iterator[Any]:
            yield from self._drawn

    class WithLoss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            from airtune.data import Batch

            return answer_token_loss(self.inner, Batch(ids, torch.ones_like(ids), labels))

        def metrics(self, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            return {"loss": Weighted(0.0, 1)}

    class Notes(TrainingProcessCallback):
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
            watch.round_ended()
            return False, Metrics()

    users = iter(c for r in range(1, rounds + 2) for c in simulation.cohort(r))
    data = FederatedDataset(Texts, lambda: next(users))
    with adapted(worker._model, worker._config(rank), worker.initial_adapter()) as peft_model:
        peft_model.train()
        inner = WithLoss(peft_model)
        model = PyTorchModel(
            inner,
            local_optimizer_create=lambda parameters, lr: torch.optim.AdamW(
                [p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0
            ),
            central_optimizer=torch.optim.SGD(list(_trainable(inner).values()), lr=1.0),
        )
        FederatedAveraging().run(
            NNAlgorithmParams(rounds, rounds + 1, simulation.COHORT, None),
            SimulatedBackend(data, data),
            model,
            NNTrainHyperParams(
                local_batch_size=section.batch_size,
                local_num_epochs=1,
                local_learning_rate=section.learning_rate,
                local_max_grad_norm=section.max_grad_norm,
            ),
            NNEvalHyperParams(local_batch_size=None),
            [Notes()],
        )
    return simulation.summed(watch.system, watch.alone)
