"""Trackers are told what the record holds: real TensorBoard files, a local MLflow file store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import fake_record
from airtune.errors import InputError
from airtune.rounds.observer import Observer
from airtune.rounds.trackers import Tracked, check_trackers, parameters, values_of
from airtune.scenario import Scenario, load_scenario

pytestmark = pytest.mark.filterwarnings("ignore")


def told(tracker: str, folder: Path) -> tuple[Scenario, list[Any]]:
    scenario = load_scenario("tiny")
    records = fake_record.rounds(fake_record.scenario_values(2, 3))
    watch = Tracked([tracker], scenario, folder)
    watch.started(3.5)
    for record in records:
        watch.round_ended(record)
    watch.close()
    return scenario, records


def test_tensorboard_reads_back_what_the_record_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs airtune[trackers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, records = told("tensorboard", tmp_path / "run-tracker")
    events = EventAccumulator(str(tmp_path / "run-tracker"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("eval_loss")}
    assert losses == pytest.approx({0: 3.5, **{r.round: r.eval_loss for r in records}})
    client = records[0].clients[1]
    times = events.Scalars(f"clients/{client.name}/upload_s")
    assert [event.value for event in times] == pytest.approx(
        [record.clients[1].upload_s for record in records]
    )


def test_mlflow_reads_back_what_the_record_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs airtune[trackers]")
    store = f"file://{tmp_path / 'store'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        scenario, records = told("mlflow", tmp_path / "run")
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name("tiny")
        (run,) = client.search_runs([experiment.experiment_id])
        bits = client.get_metric_history(run.info.run_id, "uplink_bits")
    assert {m.step: m.value for m in bits} == {r.round: r.uplink_bits for r in records}
    assert run.info.run_name == "run"
    assert run.data.params["training.lora_rank"] == str(scenario.training.lora_rank)
    assert run.data.params["devices.1.profile"] == "raspberry-pi-5"


def test_what_is_no_tracker_or_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'aim': allowed are tensorboard, wandb, mlflow, trackio"):
        check_trackers(["aim"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--tracker wandb needs accelerate"):
        check_trackers(["wandb"])
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(InputError, match="'mlflow': given twice"):
        check_trackers(["mlflow", "mlflow"])


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def store_init_configuration(self, values: dict[str, Any]) -> None: ...

        def log(self, values: dict[str, float], step: int) -> None:
            raise OSError("no network")

        def finish(self) -> None:
            raise AssertionError("it was left out")

    class Heard(Observer):
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.rounds = 0

        def noticed(self, what: str) -> None:
            self.lines.append(what)

        def round_ended(self, record: Any) -> None:
            self.rounds += 1

    monkeypatch.setattr("airtune.rounds.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("airtune.rounds.trackers._started", lambda *a: Broken())
    heard = Heard()
    watch = Tracked(["wandb"], load_scenario("tiny"), tmp_path, heard)
    for record in fake_record.rounds(fake_record.scenario_values(2, 3)):
        watch.round_ended(record)
    watch.close()
    watch.noticed("starting from round 1")
    assert heard.rounds == 3
    assert heard.lines == [
        "tracker wandb failed and is left out: no network", "starting from round 1",
    ]  # fmt: skip


def test_values_leave_out_what_was_not_measured() -> None:
    record = fake_record.rounds(fake_record.scenario_values(2, 1))[0]
    values = values_of(record)
    assert values["metrics/accuracy"] == record.metrics["accuracy"]
    assert all(isinstance(value, float) for value in values.values())
    assert "training.learning_rate" in parameters(load_scenario("tiny"))
