"""Engines: the record is the same, whichever of them does the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from airtune.engines.choice import engine_maker
from airtune.engines.local import LocalEngine
from airtune.errors import InputError
from airtune.rounds import run
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientUpdate
from assigned import assignment, mode

ray = pytest.importorskip("ray", reason="Ray is not installed")

# Ray's own start leaves files and sockets to its garbage collection.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", ["rounds=2", "task.eval_examples=8", *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for entry in rounds:
        del entry["wall_s"]
    return rounds


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return tiny()


@pytest.fixture(scope="module")
def engine(scenario: Scenario) -> Iterator[Any]:
    from airtune.engines.ray import RayEngine

    started = RayEngine(scenario, workers=2, threads=1)
    yield started
    started.close()
    assert not ray.is_initialized()  # what it started, it stopped


@pytest.fixture(scope="module")
def local_record(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("local")
    run(scenario, out=folder, engine=LocalEngine(scenario, threads=1))
    torch.set_num_threads(before)
    return lines(folder)


def test_ray_gives_the_record_of_the_local_engine(
    engine: Any, scenario: Scenario, local_record: list[Any], tmp_path: Path
) -> None:
    run(scenario, out=tmp_path / "run", engine=engine)
    assert lines(tmp_path / "run") == local_record
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_ray_refits_as_the_local_engine_does(engine: Any, tmp_path: Path) -> None:
    scenario = tiny(
        "planning.method=uniform", "planning.kappa=0.05", "pruning.refit_every_rounds=1"
    )
    threads = torch.get_num_threads()
    run(scenario, out=tmp_path / "local", engine=LocalEngine(scenario, threads=1))
    torch.set_num_threads(threads)
    spread = engine_maker("ray", workers=2, threads=1)(scenario)
    try:
        run(scenario, out=tmp_path / "ray", engine=spread)
    finally:
        spread.close()
    assert ray.is_initialized()  # it was here before
    assert lines(tmp_path / "ray")[1]["refit_s"] > 0
    assert lines(tmp_path / "ray") == lines(tmp_path / "local")


def test_a_worker_that_dies_is_replaced_and_its_clients_work_redone(
    engine: Any, scenario: Scenario, local_record: list[Any], tmp_path: Path
) -> None:
    killed = []

    class Killer(Observer):
        """Kill the second worker's process once the first round is under way."""

        def client_started(self, round: int, client: str) -> None:
            if not killed:
                killed.append(ray.get(engine._workers[1].process_id.remote()))
                os.kill(killed[0], signal.SIGKILL)

    run(scenario, out=tmp_path / "run", engine=engine, observer=Killer())
    assert killed
    assert lines(tmp_path / "run") == local_record


def test_bad_data_is_refused_through_ray_in_the_same_words(engine: Any, tmp_path: Path) -> None:
    missing = tiny("task.name=prompt-answer", f"task.source={tmp_path / 'no.jsonl'}")
    make = engine_maker("ray", workers=1, threads=1)
    with pytest.raises(InputError, match=r"no\.jsonl"):
        run(missing, out=tmp_path / "run", engine=make)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("slurm", {}, "local, ray"),
        ("local", {"workers": 2}, "--workers 2: only with --engine ray"),
        ("local", {"threads": 0}, "--threads 0: must be 1 or more"),
    ],
)
def test_engine_options_that_cannot_be(name: str, options: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        engine_maker(name, **options)


def test_a_cluster_that_does_not_answer_is_named(scenario: Scenario) -> None:
    make = engine_maker("ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1"):
        make(scenario)


def test_updates_come_one_a_job_whatever_the_order(engine: Any, scenario: Scenario) -> None:
    from airtune.training.client import ClientJob

    adapter = engine.initial_adapter()
    jobs = [ClientJob(1, assignment(k, mode(4)), adapter) for k in (3, 0, 2, 1, 0)]
    outcomes = list(engine.train(jobs))
    assert sorted(o.client for o in outcomes) == [0, 0, 1, 2, 3]
    assert all(isinstance(o, ClientUpdate) for o in outcomes)
    assert list(engine.train([])) == []


def test_ray_refuses_gpus_that_are_not_there_and_stays(engine: Any, scenario: Scenario) -> None:
    before = ray.cluster_resources()
    make = engine_maker("ray", workers=64, gpus_per_worker=8.0, threads=1)
    with pytest.raises(InputError, match=r"64 workers need more than the \d+ GPUs"):
        make(scenario)
    assert ray.is_initialized()  # it was here before
    assert ray.cluster_resources() == before


def test_ray_says_that_its_folder_has_too_long_a_name(tmp_path: Path) -> None:
    code = (
        "from airtune.engines.choice import engine_maker\n"
        "from airtune.errors import InputError\n"
        "from airtune.scenario import load_scenario\n"
        "try:\n"
        "    engine_maker('ray', workers=1, threads=1)(load_scenario('tiny'))\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Ray does not start here:" in made.stdout, made.stderr
    assert "AF_UNIX path length" in made.stdout
    assert "give a short folder in the variable RAY_TMPDIR" in made.stdout
