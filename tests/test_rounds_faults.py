"""Clients that fail, disks that are full, runs that are killed: what a run then does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from airtune.engines.local import LocalEngine
from airtune.errors import InputError, RunError
from airtune.record import checkpoint as checkpoints
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", ["rounds=2", "task.eval_examples=16", *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return rounds.jsonl without the real time, which no two runs share."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for entry in rounds:
        del entry["wall_s"]
    return rounds


pytestmark = pytest.mark.usefixtures("one_thread")


class Spoilt(LocalEngine):
    """Has one client answer with rubbish."""

    def __init__(self, scenario: Scenario, kind: str) -> None:
        super().__init__(scenario)
        self._kind = kind

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        for outcome in super().train(jobs):
            if outcome.client != 1 or not isinstance(outcome, ClientUpdate):
                yield outcome
                continue
            name = sorted(outcome.adapter)[0]
            spoilt = dict(outcome.adapter)
            if self._kind == "not finite":
                spoilt[name] = torch.full_like(spoilt[name], torch.nan)
            elif self._kind == "wrong shape":
                spoilt[name] = spoilt[name][:-1]
            elif self._kind == "wrong keys":
                del spoilt[name]
            else:
                yield ClientFailure(1, self._kind)
                continue
            yield replace(outcome, adapter=spoilt)


@pytest.mark.parametrize("kind", ["not finite", "wrong shape", "wrong keys", "out of memory"])
def test_a_client_that_answers_rubbish_is_left_out_and_the_run_goes_on(
    kind: str, tmp_path: Path
) -> None:
    scenario = tiny("rounds=1")
    record = run(scenario, out=tmp_path / "spoilt", engine=Spoilt(scenario, kind))
    clients = record.rounds[0].clients
    assert kind in clients[1].status
    assert [c.status for k, c in enumerate(clients) if k != 1] == ["ok"] * 3
    assert record.finished


class Broken(LocalEngine):
    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        for job in jobs:
            yield ClientFailure(job.client, "no memory")


def test_a_round_without_any_update_ends_the_run_and_keeps_the_record(tmp_path: Path) -> None:
    run(tiny("rounds=1"), out=tmp_path / "whole")
    scenario = tiny("rounds=1")
    with pytest.raises(RunError, match="no client's update could be used"):
        run(scenario, out=tmp_path / "broken", engine=Broken)
    assert json.loads((tmp_path / "broken" / "run.json").read_text())["status"] == "failed"


class FullDisk(LocalEngine):
    def save_adapter(self, adapter: dict[str, torch.Tensor], folder: str) -> None:
        raise OSError(28, "No space left on device", folder)


def test_an_adapter_that_cannot_be_written_fails_the_run_and_can_be_made_up_for(
    tmp_path: Path,
) -> None:
    scenario = tiny("rounds=1")
    with pytest.raises(RunError, match="No space left"):
        run(scenario, out=tmp_path / "run", engine=FullDisk)
    assert run(scenario, out=tmp_path / "run", resume=True).finished
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("keep_optimizer", [False, True])
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(
    keep_optimizer: bool, tmp_path: Path
) -> None:
    settings = [
        "rounds=4",
        "task.eval_examples=8",
        "planning.fit_kappa=true",
        f"training.keep_optimizer={str(keep_optimizer).lower()}",
    ]
    run(load_scenario("tiny", settings), out=tmp_path / "whole")
    code = (
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from airtune.rounds import run\n"
        "from airtune.scenario import load_scenario\n"
        f"scenario = load_scenario('tiny', {settings!r})\n"
        "run(scenario, out=sys.argv[1], resume=len(sys.argv) > 2)\n"
    )
    folder = tmp_path / "killed"
    kills = 0
    for attempt in range(12):
        arguments = [str(folder)] + (["resume"] if attempt else [])
        process = subprocess.Popen([sys.executable, "-c", code, *arguments])
        done = len(lines_so_far(folder)) if (folder / "rounds.jsonl").exists() else 0
        # Kill it as soon as it has got one round further, wherever it then is.
        while process.poll() is None and kills < 2:
            if (folder / "rounds.jsonl").exists() and len(lines_so_far(folder)) > done:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
    assert kills == 2
    assert lines(folder) == lines(tmp_path / "whole")
    # A loop that forgot the moments would forget them in both runs: what they must hold is known.
    for one in (folder, tmp_path / "whole"):
        last = checkpoints.saved_rounds(one / "checkpoint")[-1]
        tensors = checkpoints.load(one / "checkpoint", last).tensors
        moments = {name: v for name, v in tensors.items() if name.startswith("optimizer/")}
        owners = {name.split("/")[1] for name in moments}
        assert owners == (set("0123") if keep_optimizer else set())
        if keep_optimizer:
            steps = {float(value) for name, value in moments.items() if name.endswith("|step")}
            # 4 local steps a round, none begun anew; a layer that was cut away took fewer.
            assert max(steps) == 4.0 * last
            squares = [v for name, v in moments.items() if name.endswith("|exp_avg_sq")]
            assert all((value >= 0).all() for value in squares)
            assert any(value.any() for value in squares)


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "rounds.jsonl").read_text().splitlines()


def test_an_input_error_before_the_first_round_leaves_the_folder_free(tmp_path: Path) -> None:
    missing = tiny("task.name=prompt-answer", f"task.source={tmp_path / 'no.jsonl'}")
    with pytest.raises(InputError, match=r"no\.jsonl"):
        run(missing, out=tmp_path / "run")
    assert run(tiny("rounds=1"), out=tmp_path / "run").finished


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("planning.method=magic", ["planning.method = 'magic'", "exact", "bcd"]),
        ("aggregation.rule=sum", ["aggregation.rule = 'sum'", "fedit"]),
        ("devices.0.profile=toaster", ["toaster", "raspberry-pi-5"]),
        ("devices.0.memory_bytes=1000", ["devices.0.memory_bytes = 1000"]),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    override: str, names: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(tiny(override), out=tmp_path / "run")
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
