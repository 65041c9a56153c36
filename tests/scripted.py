"""An engine without a model: it answers at once, by rules that a test can follow by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import airtune as at
from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import submodel_shapes
from airtune.merging.functions import Contribution
from airtune.models.devices import DeviceProfile
from airtune.models.structure import whole
from airtune.models.workload import StepTokens
from airtune.planning.known_shape import shape_of_model
from airtune.record import RoundRecord
from airtune.rounds import Cell, Decision, Situation, State
from airtune.rounds import cell as hooks
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.federation import ClientData, Evaluation, Federation, MeasuredCosts

Outcome = ClientUpdate | ClientFailure


class Scripted:
    """Client k holds 10·(k + 1) examples and moves every entry of its adapter by 0.01·(k + 1).

    Args:
        scenario: of the cell; its model is never loaded.
        answer: (job, update) → what the client answers in its place.
        profiles: what real devices measured of themselves.
    """

    def __init__(
        self,
        scenario: Scenario,
        answer: Callable[[ClientJob, ClientUpdate], Outcome] = lambda job, update: update,
        profiles: tuple[DeviceProfile | None, ...] = (),
    ) -> None:
        self.scenario, self.shape = scenario, shape_of_model(scenario)
        self.answer, self.profiles = answer, profiles
        self.jobs: list[ClientJob] = []
        self.evaluations: list[tuple[Adapter, bool, Sequence[int] | None]] = []
        self.closed = 0

    def federation(self) -> Federation:
        clients = range(len(self.scenario.client_devices))
        known = [
            ClientData(
                examples=10 * (k + 1),
                labels={f"label {k}": 10 * (k + 1)},
                pruning_cost=None,
                calibration_flops=1e6 * (k + 1),
            )
            for k in clients
        ]
        return Federation(self.shape, "a fingerprint", 4321, tuple(known), self.profiles)

    def initial_adapter(self) -> Adapter:
        shapes = submodel_shapes(whole(self.shape), self.shape, self.scenario.training.lora_rank)
        rng = torch.Generator().manual_seed(3)
        return {name: torch.rand(size, generator=rng) for name, size in shapes.items()}

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        return tuple(
            StepTokens(rows=8, length=20 + 2 * round + client, label_tokens=10 * round + client + i)
            for i in range(self.scenario.training.local_steps)
        )

    def present(self) -> frozenset[int] | None:
        return None

    def update(self, job: ClientJob) -> ClientUpdate:
        k, start = job.client, leading(job.adapter, job.assignment.mode.rank)
        keeps = self.scenario.training.keep_optimizer
        return ClientUpdate(
            round=job.round,
            client=k,
            adapter={name: value + 0.01 * (k + 1) for name, value in start.items()},
            structure=whole(self.shape),
            pruning=0.0,
            flops=1e6 * (k + job.round),
            uplink_bits=1e4 * (k + job.round),
            examples=10 * (k + 1),
            train_loss=1.0 + 0.1 * k * job.round,
            optimizer_state={"an entry|step": torch.tensor(float(job.round))} if keeps else None,
            control=None
            if job.correction is None
            else {name: torch.full_like(value, 0.5) for name, value in start.items()},
        )

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[Outcome]:
        """Answer in the opposite order: the engine need not keep that of the jobs."""
        asked = list(jobs)
        self.jobs += asked
        for job in reversed(asked):
            yield self.answer(job, self.update(job))

    def measured_costs(self, client: int) -> MeasuredCosts:
        return ((0.0, 0.0), (0.8, 0.1 * (client + 1))), None

    def evaluate(
        self, adapter: Adapter, *, final: bool, clients: Sequence[int] | None = None
    ) -> Evaluation:
        self.evaluations.append((adapter, final, clients))
        mean = float(next(iter(adapter.values())).mean())
        who = range(len(self.scenario.client_devices)) if clients is None else clients
        own = self.scenario.task.client_eval_examples > 0
        return Evaluation(
            2.0 + mean, {"accuracy": 0.25}, tuple(5.0 + k for k in who) if own else ()
        )

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


class Listening(Observer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def preparing(self, what: str) -> None:
        self.heard.append(what)

    def noticed(self, what: str) -> None:
        self.heard.append(("noticed", what))

    def client_started(self, round: int, client: str) -> None:
        self.heard.append((round, client))


class Round:
    """One round of a scripted cell, with everything that it was made of."""

    def __init__(
        self,
        scenario: Scenario,
        engine: Scripted | None = None,
        *,
        rounds: int = 1,
        state: dict[str, Any] | None = None,
        out: Sequence[int] = (),
    ) -> None:
        self.engine = engine or Scripted(scenario)
        self.listening = Listening()
        self.contributions: list[Contribution] = []
        self.merged: Adapter = {}
        self.situations: list[Situation] = []

        def decide(cell: Cell, situation: Situation) -> Decision:
            self.situations.append(situation)
            made = hooks.decide(cell, situation)
            kept = [None if k in out else one for k, one in enumerate(made.assignments)]
            self.decision = Decision(made.plan, tuple(kept))
            return self.decision

        def merge(cell: Cell, adapter: Adapter, contributions: Sequence[Contribution]) -> Adapter:
            self.contributions = list(contributions)
            self.merged = hooks.merge(cell, adapter, contributions)
            return self.merged

        with at.open_cell(scenario, engine=self.engine, decide=decide, merge=merge,
                          observer=self.listening) as self.cell:  # fmt: skip
            after = at.begin(self.cell)
            self.engine.evaluations.clear()
            after = replace(after, **(state or {}))
            for _ in range(rounds):
                self.engine.jobs.clear()
                self.before = after
                after, self.record = at.step(self.cell, after)
        self.after: State = after
        self.situation = self.situations[-1]
        self.plan = self.decision.plan


def failing(*clients: int) -> Any:
    def answer(job: ClientJob, update: ClientUpdate) -> Outcome:
        if job.client in clients:
            return ClientFailure(job.client, f"fault {job.client}", after_s=70.0 + job.client)
        return update

    return answer


def stopped_and_resumed(scenario: Scenario, out: Path, after: int) -> at.Record:
    """Return the record of a run that was broken off after a round, and then resumed."""

    class Stopped(Exception):
        pass

    class Stop(Observer):
        def round_ended(self, record: RoundRecord) -> None:
            if record.round == after:
                raise Stopped

    with pytest.raises(Stopped):
        at.run(scenario, out=out, observer=Stop())
    return at.run(scenario, out=out, resume=True)
