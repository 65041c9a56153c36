"""Work that runs have in common is done once, and the records are the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

import airtune as at
from airtune.assignment import Assignment, Mode
from airtune.engines.local import LocalEngine
from airtune.engines.sharing import (
    FOR_A_CUT,
    FOR_STEPS,
    NOT_READ,
    NOT_READ_IN_TRAINING,
    NOT_READ_OF_A_DEVICE,
    SharingEngine,
)
from airtune.record.schema import dump_json
from airtune.scenario import ParticipationSection, Scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate, Refit
from airtune.training.worker import Evaluation, Worker

QUICK = ["rounds=2", "training.local_steps=1", "task.eval_examples=8", "task.train_examples=128"]
LIMIT = 1e9


class Counting(LocalEngine):
    """Notes what is really computed."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.trained: list[tuple[int, int]] = []
        self.evaluated = 0

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        for job in jobs:
            self.trained.append((job.round, job.client))
            yield from super().train([job])

    def evaluate(
        self, adapter: at.Adapter, *, final: bool = False, clients: Sequence[int] | None = None
    ) -> Evaluation:
        self.evaluated += 1
        return super().evaluate(adapter, final=final, clients=clients)


def tiny(*changes: str) -> Scenario:
    return at.load_scenario("tiny", [*QUICK, *changes])


def run(scenario: Scenario, out: Path, shared: Path | None) -> tuple[list[str], Counting]:
    """Return a run's rounds as they are recorded, without real time, and what was computed."""
    engine = Counting(scenario)
    used = engine if shared is None else SharingEngine(engine, scenario, shared, LIMIT)
    record = at.run(scenario, out=out, engine=used)
    return [dump_json(replace(one, wall_s=0.0)) for one in record.rounds], engine


@pytest.mark.parametrize(
    "common",
    [
        (),
        ("training.keep_optimizer=true",),
        ("aggregation.uplink_change_bits=4",),
        ("training.scaffold=true",),
        ("aggregation.rule=flora",),
        ("task.client_eval_examples=2", "evaluation.every_rounds=2"),
    ],
    ids=["plain", "moments", "few bits", "control variates", "restarts", "clients' own text"],
)
def test_another_bandwidth_plan_trains_nothing_again(
    tmp_path: Path, common: tuple[str, ...]
) -> None:
    equal, planned = (tiny(f"planning.method={m}", *common) for m in ("none", "bandwidth-only"))
    alone, _ = run(planned, tmp_path / "alone", None)
    first, did = run(equal, tmp_path / "first", tmp_path / "shared")
    second, left = run(planned, tmp_path / "second", tmp_path / "shared")
    assert len(did.trained) == 2 * 4
    assert did.evaluated == (2 if common and "every_rounds" in common[-1] else 3)
    assert (left.trained, left.evaluated) == ([], 0)
    assert second == alone
    assert first != second  # the clock is another


def test_another_cut_is_other_work(tmp_path: Path) -> None:
    methods = ("none", "uniform", "exact")
    alone = [run(tiny(f"planning.method={m}"), tmp_path / m, None)[0] for m in methods]
    shared = [
        run(tiny(f"planning.method={m}"), tmp_path / f"{m}-shared", tmp_path / "shared")[0]
        for m in methods
    ]
    assert shared == alone
    assert len({str(rounds) for rounds in alone}) == len(methods)


def job(pruning: float = 0.0, client: int = 0, round: int = 1, **mode: Any) -> ClientJob:
    asked = {"local_steps": 1, "rank": 4, "bits_per_value": 16, **mode}
    assigned = Assignment(client, Mode(**asked), pruning, 1e5, 1e6, 1e6, 1e3)
    generator = torch.Generator().manual_seed(3)
    start = {
        name: torch.randn(value.shape, generator=generator) * 0.01
        for name, value in WORKER.initial_adapter().items()
    }
    return ClientJob(round, assigned, start)


WORKER = Worker(tiny())
ENGINE = LocalEngine(tiny())


class Unreadable:
    """Fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"'{name}' was read")


@pytest.mark.parametrize("pruning", [0.0, 0.4])
def test_client_work_reads_nothing_that_its_hash_leaves_out(pruning: float) -> None:
    scenario = tiny()
    # Of these the merging rule and the schedule count in another way.
    gone = NOT_READ - {"aggregation", "rounds", "plugins", "participation"}
    devices = tuple(
        device.model_copy(update=dict.fromkeys(NOT_READ_OF_A_DEVICE, Unreadable()))
        for device in scenario.devices
    )
    section = scenario.pruning
    unread = NOT_READ_IN_TRAINING - {"cache_statistics"} | (FOR_A_CUT if not pruning else set())
    blind = scenario.model_copy(
        update={
            **dict.fromkeys(gone, Unreadable()),
            "devices": devices,
            # Its size bounds what is held in memory, and changes no result.
            "participation": ParticipationSection(rule="in-turn", cohort=1),
            "pruning": section.model_copy(update=dict.fromkeys(unread, Unreadable())),
        }
    )
    # The rule is looked up once, and rules may ask how clients take part.
    worker = Worker(scenario)
    worker.scenario = blind
    worker._load_data()
    before, after = WORKER.train(job(pruning)), worker.train(job(pruning))
    assert (before.structure, before.train_loss) == (after.structure, after.train_loss)
    assert all(torch.equal(before.adapter[name], after.adapter[name]) for name in before.adapter)
    steps = dict.fromkeys(FOR_STEPS, Unreadable())
    worker.scenario = blind.model_copy(
        update={"training": scenario.training.model_copy(update=steps), "aggregation": Unreadable()}
    )
    adapter = job().adapter
    assert worker.evaluate(adapter, final=True) == WORKER.evaluate(adapter, final=True)


def keys(folder: Path, scenario: Scenario, asked: ClientJob) -> str:
    return SharingEngine(ENGINE, scenario, folder, LIMIT)._key(asked)


@pytest.mark.parametrize(
    ("changes", "pruning", "same"),
    [
        (["cell.radius_m=77", "devices.0.power_dbm=10", "planning.kappa=0.9", "name=x"], 0.0, True),
        (["pruning.refit=false", "pruning.units=mlp", "pruning.cost=measured"], 0.0, True),
        (["pruning.refit=false"], 0.3, False),
        (["pruning.units=mlp"], 0.3, False),
        (["pruning.cost=measured", "pruning.max_pruning=0.5"], 0.3, True),
        (["pruning.cache_statistics=true"], 0.0, True),
        (["pruning.cache_statistics=true"], 0.3, False),
        (["participation.cohort=2"], 0.0, True),
        (["participation.cohort=2"], 0.3, False),
        (["pruning.refit_every_rounds=2", "pruning.refit_examples=4"], 0.0, True),
        (["pruning.refit_every_rounds=2"], 0.3, True),
        (["pruning.refit_every_rounds=2", "pruning.refit_examples=4"], 0.3, False),
        (["rounds=3"], 0.0, True),
        (["seed=2"], 0.0, False),
        (["training.learning_rate=0.02"], 0.0, False),
        (["training.weight_decay=0.1"], 0.0, False),
        (["training.learning_rate_schedule=linear"], 0.0, False),
        (["task.train_examples=130"], 0.0, False),
        (["partition.alpha=0.6"], 0.0, False),
        (["pruning.calibration=shared"], 0.0, False),
        (["devices.0.count=3"], 0.0, False),
        (["model.dtype=bfloat16"], 0.0, False),
        (["aggregation.rule=flora"], 0.0, False),
        (["aggregation.rule=hetlora"], 0.0, True),
    ],
)
def test_what_a_hash_depends_on(
    tmp_path: Path, changes: list[str], pruning: float, same: bool
) -> None:
    asked = job(pruning)
    assert (keys(tmp_path, tiny(*changes), asked) == keys(tmp_path, tiny(), asked)) is same


def test_a_hash_depends_on_all_of_the_job_but_the_air(tmp_path: Path) -> None:
    base, scenario = job(), tiny()
    changed = dict(base.adapter)
    name = next(iter(changed))
    changed[name] = changed[name] + 1e-7
    others = [
        job(pruning=0.1), job(client=1), job(round=2), job(local_steps=2), job(rank=2),
        job(bits_per_value=4, bits_per_scale=32), job(freezes_a=True),
        replace(base, adapter=changed), replace(base, optimizer_state={"step": torch.zeros(())}),
        replace(base, optimizer_state={"step": torch.ones(())}),
        replace(base, rate_round=2), replace(base, correction=base.adapter),
        replace(base, correction=changed), replace(base, refit=Refit(1, base.adapter)),
        replace(base, refit=Refit(4, base.adapter)), replace(base, refit=Refit(4, changed)),
    ]  # fmt: skip
    found = {keys(tmp_path, scenario, one) for one in [base, *others]}
    assert len(found) == 1 + len(others)
    air = replace(base.assignment, bandwidth_hz=7.0, rate_bps=7.0, downlink_rate_bps=7.0)
    assert keys(tmp_path, scenario, replace(base, assignment=air)) in found
    linear = "training.learning_rate_schedule=linear"
    assert keys(tmp_path, tiny(linear), base) != keys(tmp_path, tiny(linear, "rounds=3"), base)


def test_a_job_that_another_process_holds_comes_last_and_is_not_done_again(tmp_path: Path) -> None:
    scenario = tiny()
    engine = Counting(scenario)
    sharing = SharingEngine(engine, scenario, tmp_path, LIMIT)
    other = SharingEngine(ENGINE, scenario, tmp_path / "elsewhere", LIMIT)
    asked = [job(client=client) for client in (0, 1)]
    (expected,) = other.train(asked[:1])
    path = tmp_path / f"{sharing._key(asked[0])}.safetensors"
    lock = filelock.FileLock(path.with_suffix(".lock"))
    lock.acquire()
    answers = sharing.train(asked)
    assert next(answers).client == 1
    # The other process ends.
    (tmp_path / "elsewhere" / path.name).rename(path)
    lock.release()
    (found,) = answers
    assert engine.trained == [(1, 1)]
    assert isinstance(found, ClientUpdate)
    assert isinstance(expected, ClientUpdate)
    assert list(found.adapter) == list(expected.adapter)
    assert all(torch.equal(found.adapter[k], v) for k, v in expected.adapter.items())


def test_a_broken_file_is_computed_again_and_the_oldest_go_where_room_is_short(
    tmp_path: Path,
) -> None:
    scenario = tiny()
    engine = Counting(scenario)
    sharing = SharingEngine(engine, scenario, tmp_path, LIMIT)
    list(sharing.train([job()]))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    list(sharing.train([job()]))
    assert engine.trained == [(1, 0)] * 2
    # The oldest go where there is no room for all.
    size = path.stat().st_size
    small = SharingEngine(engine, scenario, tmp_path, 1.5 * size)
    list(small.train([job(client=1)]))
    (left,) = tmp_path.glob("*.safetensors")
    assert left.stem == small._key(job(client=1))


def test_plugins_and_failures_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airtune.rounds.apart import _engine

    plugin = tmp_path / "mine.py"
    plugin.write_text("")
    shared = {"folder": str(tmp_path / "shared"), "limit_bytes": LIMIT}
    own = at.load_scenario("tiny", plugins=[str(plugin)])
    assert isinstance(_engine(own, shared), LocalEngine)
    assert isinstance(_engine(tiny(), None), LocalEngine)
    sharing = _engine(tiny(), shared)
    assert isinstance(sharing, SharingEngine)

    def fails(self: Worker, asked: ClientJob) -> ClientUpdate:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Worker, "train", fails)
    (outcome,) = sharing.train([job()])
    assert isinstance(outcome, ClientFailure)
    assert not list((tmp_path / "shared").glob("*.safetensors"))
