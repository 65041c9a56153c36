"""Every tensor operation of a run on CUDA tensors, without a GPU: none mixes devices.

On a GPU the processor's tensors and the device's do not meet; here `tests/fake_cuda.py` has them
refused alike. `tests/test_fake_cuda.py` runs these in a process of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

import fake_cuda
from airtune.data.batches import Batch
from airtune.engines.local import LocalEngine
from airtune.pruning.statistics import SublayerStatistics
from airtune.record import Record
from airtune.rounds.running import run
from airtune.scenario import load_scenario
from airtune.training import client
from airtune.training.evaluation import choice_scores
from small_models import small_model

SMOKE = Path(__file__).resolve().parents[1] / "experiments" / "scenarios" / "smoke.toml"
SMALL = (
    "rounds=1", "devices.0.count=1", "devices.1.count=1", "task.train_examples=32",
    "task.eval_examples=4", "training.local_steps=1", "training.batch_size=2",
    "pruning.calibration_examples=4", "partition.min_examples=4", "training.lora_rank=2",
)  # fmt: skip
PRUNED = ("planning.method=uniform", "planning.max_pruning_loss=0.4")


@pytest.fixture(scope="session", autouse=True)
def devices() -> Iterator[None]:
    with fake_cuda.cuda_in_a_build_without():
        yield


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_cuda.fake_cuda(monkeypatch):
        yield


def done(out: Path, *settings: str) -> Record:
    scenario = load_scenario(SMOKE, [*SMALL, *settings])
    return run(scenario, out=out, engine=lambda one: LocalEngine(one, device="cuda"))


CASES = {
    "pruned, refit, in few bits, with kept moments": (
        *PRUNED, "aggregation.uplink_change_bits=4", "training.keep_optimizer=true",
        "evaluation.generate=true", "evaluation.generate_examples=2", "rounds=2",
    ),
    "bfloat16, a rolling window, ranks that differ": (
        *PRUNED, "model.dtype=bfloat16", "pruning.selection=rolling", "pruning.refit=false",
        "devices.1.lora_rank=1", "aggregation.rule=flexlora",
    ),
    "text read again, units that rotate": (
        *PRUNED, "pruning.selection=rotating", "pruning.refit_every_rounds=1", "rounds=2",
    ),
    "A frozen": ("aggregation.rule=ffa-lora", "planning.method=none"),
    "clients that restart on a changed base": ("aggregation.rule=flora", *PRUNED, "rounds=2"),
    "whole blocks, the same text for all": (
        *PRUNED, "pruning.units=blocks", "pruning.calibration=shared",
        "pruning.cache_statistics=true",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_run_keeps_to_its_device(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "pruning.cache_statistics=true" in settings:
        monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "cache"))
    record = done(tmp_path / "run", *settings)
    for one in record.rounds:
        assert {client.status for client in one.clients} == {"ok"}
        assert (max(client.pruning for client in one.clients) > 0) == (PRUNED[0] in settings)
    read_again = [one.refit_s is not None for one in record.rounds[1:]]
    assert read_again == ["pruning.refit_every_rounds=1" in settings] * len(read_again)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    # What is drawn at random is drawn on the CPU: the same on every device.
    assert fake_cuda.RANDOM_ON_CUDA == []


def test_the_fake_device_computes_what_the_cpu_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CASES["pruned, refit, in few bits, with kept moments"]
    expected = run(load_scenario(SMOKE, [*SMALL, *settings]), out=tmp_path / "cpu")
    with fake_cuda.fake_cuda(monkeypatch):
        record = done(tmp_path / "cuda", *settings)
    for one, other in zip(record.rounds, expected.rounds, strict=True):
        assert one.eval_loss == pytest.approx(other.eval_loss, rel=1e-4)
        assert [c.pruning for c in one.clients] == [c.pruning for c in other.clients]
    assert record.rounds[-1].metrics == pytest.approx(expected.rounds[-1].metrics, rel=1e-4)


@pytest.mark.usefixtures("on_cuda")
def test_choices_are_scored_on_the_device_of_the_model() -> None:
    model = small_model("gemma3").to("cuda")
    scores = choice_scores(model, [[5, 6], [7, 8, 9]], [[4], [5, 6, 2], [7, 2]])
    assert scores.device.type == "cpu"
    assert scores.shape == (2, 3)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("fault", ["targets that stay on the CPU", "a factor made on the CPU"])
def test_mixed_devices_are_noticed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two planted faults, one in training and one in the refit after a cut."""
    if fault == "targets that stay on the CPU":
        rightly = client.answer_token_loss

        def on_the_cpu(model: nn.Module, batch: Batch) -> Tensor:
            return rightly(model, replace(batch, labels=batch.labels.cpu()))

        monkeypatch.setattr(client, "answer_token_loss", on_the_cpu)
    else:
        right = SublayerStatistics.factor_on
        monkeypatch.setattr(
            SublayerStatistics, "factor_on", lambda self, like: right(self, like.cpu())
        )
    with pytest.raises(RuntimeError, match="same device"):
        done(tmp_path / "run", *PRUNED)
