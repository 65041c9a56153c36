"""The round loop under the merging and participation rules: what is trained, sent and billed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import airtune as at
from airtune.adapters.lora import adapted, merged_into_base
from airtune.adapters.names import leading
from airtune.data import encode, eval_batches, load_task
from airtune.merging.rules import MERGING
from airtune.models.loading import load_model
from airtune.models.workload import full_sizes, payload_bits
from airtune.record import RoundRecord
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.evaluation import answer_loss
from airtune.training.worker import Worker
from assigned import mode

# Wide enough a band that computing decides, for the rules that shorten it.
FAST_AIR = ("cell.uplink_bandwidth_hz=5e6", "planning.kappa=0.1", "devices.1.utilisation=5e-5")


def tiny(*overrides: str) -> Scenario:
    settings = ["rounds=2", "task.eval_examples=16", "planning.method=none", *overrides]
    return load_scenario("tiny", settings)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", list(MERGING))
def test_every_rule_learns_and_everyone_pays_for_their_own_rank(name: str, tmp_path: Path) -> None:
    rule = MERGING[name]
    ranks = [] if rule.freezes_a else ["devices.1.lora_rank=2"]
    scenario = tiny(f"aggregation.rule={name}", *ranks)
    record = run(scenario, out=tmp_path / "run")
    assert record.description is not None
    assert record.rounds[-1].eval_loss < record.description.initial_eval_loss - 0.5  # type: ignore[operator]
    shape = load_model(scenario.model, seed=scenario.seed).shape
    for entry in record.rounds:
        needed = [
            payload_bits(shape, full_sizes(shape), mode(rank, freezes_a=rule.freezes_a))
            for rank in scenario.client_ranks
        ]
        assert [client.uplink_bits for client in entry.clients] == needed
        down = [client.downlink_bits for client in entry.clients]
        if rule.restarts:
            before = sum(c.uplink_bits for c in record.rounds[0].clients)
            assert down == [1024.0 if entry.round == 1 else before] * len(needed)
        else:
            assert down == needed
        assert entry.downlink_bits == max(down)
    if rule.freezes_a:
        assert sum(needed) < 0.7 * sum(
            payload_bits(shape, full_sizes(shape), mode(rank)) for rank in scenario.client_ranks
        )
        saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
        for entry_name, value in Worker(scenario).initial_adapter().items():
            if "lora_A" in entry_name:
                assert torch.equal(saved[entry_name], value)


def test_what_flora_merged_into_the_base_comes_back_as_a_plain_adapter(tmp_path: Path) -> None:
    scenario = tiny("aggregation.rule=flora", "devices.0.lora_rank=1")
    record = run(scenario, out=tmp_path / "run")
    loaded = load_model(scenario.model, seed=scenario.seed)
    task = load_task(scenario.task, seed=scenario.seed, tokenizer=loaded.tokenizer)
    batches = eval_batches(encode(task.test, loaded.tokenizer, scenario.task.max_tokens), 16)
    model = PeftModel.from_pretrained(loaded.model, str(tmp_path / "run" / "adapter"))
    assert answer_loss(model, batches) == pytest.approx(record.rounds[-1].eval_loss, rel=1e-5)


def test_flora_takes_a_rank_above_that_of_all_merges_before(tmp_path: Path) -> None:
    scenario = tiny(
        "aggregation.rule=flora", "devices.0.lora_rank=1", "participation.cohort=1",
        "participation.cohort_by=round-robin", "rounds=4",
    )  # fmt: skip
    record = run(scenario, out=tmp_path / "run")
    clients = [client for entry in record.rounds for client in entry.clients]
    assert [client.status for client in clients] == ["ok"] * 4
    assert [client.rank for client in clients].index(4) > 0  # one of rank 1 was first


def test_flora_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    settings = ["aggregation.rule=flora", "planning.method=exact", "rounds=3"]
    whole = run(tiny(*settings), out=tmp_path / "whole")

    class Killed(Exception):
        pass

    class Killer:
        def preparing(self, what: str) -> None: ...
        def started(self, initial_loss: float | None) -> None: ...
        def client_started(self, round: int, client: str) -> None: ...
        def round_ended(self, record: RoundRecord) -> None:
            raise Killed

    with pytest.raises(Killed):
        run(tiny(*settings), out=tmp_path / "cut", observer=Killer())
    resumed = run(tiny(*settings), out=tmp_path / "cut", resume=True)
    for ours, theirs in zip(resumed.rounds, whole.rounds, strict=True):
        assert (ours.eval_loss, ours.elapsed_s) == (theirs.eval_loss, theirs.elapsed_s)


def test_an_adapter_merged_into_the_base_is_the_adapter_and_comes_out_again() -> None:
    scenario = tiny()
    worker = Worker(scenario)
    source = torch.Generator().manual_seed(1)
    adapter = {
        name: torch.randn(value.shape, generator=source) / 10
        for name, value in leading(worker.initial_adapter(), 2).items()
    }
    model, batch = worker._model, worker._test_batches[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with adapted(model, worker._config(2), adapter) as peft_model, torch.no_grad():
        expected = peft_model(input_ids=batch.input_ids).logits
    with merged_into_base(model, adapter, 2.0), torch.no_grad():
        merged = model(input_ids=batch.input_ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_who_sits_out_does_nothing_and_the_report_says_so(tmp_path: Path) -> None:
    settings = [*FAST_AIR, "participation.rule=in-turn", "aggregation.rule=flexlora"]
    record = run(tiny(*settings), out=tmp_path / "run")
    first, second = record.rounds
    idle = [client for client in first.clients if client.status == "sat out"]
    assert 0 < len(idle) < len(first.clients)
    for client in idle:
        assert client.pruning is client.asked_pruning is client.rate_bps is client.rank is None
        assert client.flops == client.uplink_bits == client.total_s == client.label_tokens == 0
    assert all(client.status == "ok" for client in second.clients)
    assert second.round_latency_s > first.round_latency_s
    assert "sat out" in at.write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize("rule", ["partial", "partial-fednova"])
def test_partial_work_is_the_first_steps_of_the_whole(rule: str, tmp_path: Path) -> None:
    shared = [*FAST_AIR, "rounds=1", "planning.kappa=0.6"]
    whole = run(tiny(*shared), out=tmp_path / "whole").rounds[0]
    settings = [*shared, f"participation.rule={rule}"]
    partial = run(tiny(*settings), out=tmp_path / "partial").rounds[0]
    pairs = list(zip(partial.clients, whole.clients, strict=True))
    fewer = [client.label_tokens < full.label_tokens for client, full in pairs]
    assert any(fewer)
    assert not all(fewer)
    for less, (client, full) in zip(fewer, pairs, strict=True):
        assert (client.flops < full.flops) == less
        assert client.uplink_bits == full.uplink_bits
        assert (client.train_loss == full.train_loss) != less
    assert partial.round_latency_s < whole.round_latency_s
    assert partial.predicted_latency_s == pytest.approx(partial.round_latency_s, rel=0.02)
