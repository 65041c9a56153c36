"""On a real GPU as on the processor, to the rounding of another order of sums.

Nothing here asks for equal bits where a GPU adds: its sums have another order, and some of its
backward passes another one each time. What is counted or drawn (bits, FLOP, adapters at the start,
batches) is equal to the last bit. `tests/test_fake_cuda.py` runs the same code without a GPU.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from airtune.engines.local import LocalEngine
from airtune.errors import RunError
from airtune.models.loading import fingerprint_of, shape_of
from airtune.pruning import Statistics, calibrate, choose, cut
from airtune.record import Record
from airtune.rounds.running import run
from airtune.scenario import load_scenario
from airtune.training.client import ClientJob, failure_of
from airtune.training.worker import Worker
from small_models import small_model, text_batch

SMOKE = Path(__file__).resolve().parents[1] / "experiments" / "scenarios" / "smoke.toml"
RELATIVE = 2e-3
"""Of losses in float32 after a few AdamW steps, whose first ones follow the gradient's sign."""

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(test):
    for mark in needs_gpu:
        test = mark(test)
    return test


def done(out: Path, device: str, *settings: str, resume: bool = False) -> Record:
    scenario = load_scenario(SMOKE, ["rounds=2", *settings])
    return run(scenario, out=out, engine=lambda one: LocalEngine(one, device=device), resume=resume)


def whole_harm(statistics: Statistics, unit: str) -> torch.Tensor:
    parts = statistics.mlp if unit == "mlp" else statistics.attention
    return torch.stack([part.harm[0] for part in parts])


@on_gpu
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_calibration_and_cut_are_those_of_the_processor(name: str) -> None:
    model = small_model(name)
    shape, batch = shape_of(model), text_batch(rows=16, length=24)
    reference = calibrate(model, shape, [batch])
    structure = choose(reference, shape, 0.4)
    with torch.no_grad():
        expected = cut(model, shape, structure, reference)(input_ids=batch.input_ids).logits
    moved = small_model(name).to("cuda")
    statistics = calibrate(moved, shape, [batch])
    # The order of units that are nearly alike may differ; what all of them cost does not.
    for unit in ("mlp", "group"):
        torch.testing.assert_close(
            whole_harm(statistics, unit), whole_harm(reference, unit), rtol=1e-2, atol=1e-6
        )
    assert statistics.loss == pytest.approx(reference.loss, rel=1e-4)
    with torch.no_grad():
        submodel = cut(moved, shape, structure, reference)
        logits = submodel(input_ids=batch.input_ids.to("cuda")).logits.cpu()
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)


@on_gpu
def test_what_is_counted_or_drawn_is_equal_and_losses_are_near(tmp_path: Path) -> None:
    cpu, gpu = (done(tmp_path / device, device, "planning.method=none") for device in
                ("cpu", "cuda"))  # fmt: skip
    for one, other in zip(gpu.rounds, cpu.rounds, strict=True):
        for key in ("uplink_bits", "flops", "elapsed_s"):
            assert getattr(one, key) == getattr(other, key)
        assert {client.status for client in one.clients} == {"ok"}
        assert one.eval_loss == pytest.approx(other.eval_loss, rel=RELATIVE)
    begun = [Worker(load_scenario(SMOKE), device=at).initial_adapter() for at in ("cpu", "cuda")]
    assert all(torch.equal(begun[0][name], begun[1][name]) for name in begun[0])


@on_gpu
def test_every_kind_of_work_runs_in_bfloat16(tmp_path: Path) -> None:
    settings = (
        "model.dtype=bfloat16", "planning.method=uniform", "planning.max_pruning_loss=0.3",
        "aggregation.uplink_change_bits=4", "training.keep_optimizer=true",
        "evaluation.generate=true", "evaluation.generate_examples=4",
    )  # fmt: skip
    record, exact = (
        done(tmp_path / name, "cuda", *settings[first:])
        for first, name in enumerate(("bfloat16", "float32"))
    )
    for one, other in zip(record.rounds, exact.rounds, strict=True):
        assert {client.status for client in one.clients} == {"ok"}
        # Eight bits of mantissa; where units are cut may differ, too.
        assert one.eval_loss == pytest.approx(other.eval_loss, rel=0.1)


@on_gpu
def test_a_run_goes_on_near_to_where_it_was(tmp_path: Path) -> None:
    whole = done(tmp_path / "whole", "cuda", "rounds=3")
    done(tmp_path / "parts", "cuda", "rounds=2")
    resumed = done(tmp_path / "parts", "cuda", "rounds=3", resume=True)
    assert [one.eval_loss for one in resumed.rounds] == pytest.approx(
        [one.eval_loss for one in whole.rounds], rel=RELATIVE
    )


@on_gpu
def test_clients_that_restart_leave_the_base_as_it_was(tmp_path: Path) -> None:
    scenario = load_scenario(SMOKE, ["rounds=1", "aggregation.rule=flora", "planning.method=none"])
    engine = LocalEngine(scenario, device="cuda")
    before = fingerprint_of(engine._worker._model)
    run(scenario, out=tmp_path, engine=engine)
    assert fingerprint_of(engine._worker._model) == before


def test_a_full_gpu_ends_the_run_and_is_no_fault_of_a_client() -> None:
    job, full = cast(ClientJob, SimpleNamespace(client=3)), "fewer runs at once"
    for error, said in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), full),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), full),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), full),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "the GPU failed"),
        (MemoryError(), "the memory is used up"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you …"),
            "the memory is used up",
        ),
        (RuntimeError("Expected all tensors to be on the same device, but …"), "the GPU failed"),
    ):
        with pytest.raises(RunError, match=said):
            failure_of(job, error)
    other = failure_of(job, RuntimeError("loss is not finite"))
    assert (other.client, other.reason) == (3, "RuntimeError: loss is not finite")


def test_a_machine_without_memory_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, job = LocalEngine(load_scenario("tiny")), cast(ClientJob, SimpleNamespace(client=3))

    def full(job: ClientJob) -> None:
        raise MemoryError

    monkeypatch.setattr(engine._worker, "train", full)
    with pytest.raises(RunError, match="the memory is used up"):
        list(engine.train([job]))
