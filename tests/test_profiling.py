"""`airtune profile`: what it writes is a device that scenarios can use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from airtune.errors import InputError
from airtune.models.devices import compute_s, profile_of, read_profile
from airtune.models.loading import load_model
from airtune.models.workload import SHAPES, StepTokens, full_sizes, training_flops
from airtune.scenario import DeviceSection, ModelSection
from airtune.training.profiling import StepTime, device_profile, measure
from assigned import mode

SMALL = {"rows": 2, "length": 8, "lora_rank": 2, "repeats": 1}


def test_measured_steps_count_the_flops_they_time() -> None:
    loaded = load_model(ModelSection(id="tiny"), seed=0)
    steps = measure(loaded, [0.0, 0.5], **SMALL)
    assert steps[0].pruning == 0
    assert steps[0].flops > steps[1].flops
    assert all(step.seconds > 0 for step in steps)
    shape = SHAPES["tiny"]
    expected = training_flops(shape, full_sizes(shape), StepTokens(2, 8, 8), mode(2))
    assert steps[0].flops == expected
    assert not any(p.requires_grad for p in loaded.model.get_input_embeddings().parameters())


def test_profile_gives_back_the_times() -> None:
    steps = [StepTime(0.0, 2.0, 2e9), StepTime(0.5, 1.0, 1e9)]
    assert device_profile("d", "m", steps)["effective_flops"] == pytest.approx(1e9)


def airtune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from airtune.cli import main; main()", "profile"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def test_command_writes_a_profile_for_scenarios(tmp_path: Path) -> None:
    out = tmp_path / "laptop.json"
    options = ["--model", "tiny", "--rates", "0,0.5", "--rows", "2", "--length", "8"]
    ended = airtune(*options, "--repeats", "1", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "pruning" in ended.stdout
    written = json.loads(out.read_text())
    device = profile_of(DeviceSection(profile=str(out)))
    assert device == read_profile(out)
    assert device.name == "measured"
    assert compute_s(written["effective_flops"], device) == pytest.approx(1.0)
    assert [step["pruning"] for step in written["steps"]] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": []}, "no pruning rate"),
        ({"rates": [1.0]}, r"must be in \[0, 1\)"),
        ({"rates": [0.0], "length": 1}, "length = 1"),
    ],
)
def test_impossible_measurements_are_refused(options: dict, message: str) -> None:
    loaded = load_model(ModelSection(id="tiny"), seed=0)
    with pytest.raises(InputError, match=message):
        measure(loaded, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "0,half"], "--rates '0,half'"),
        (["--dtype", "float8"], "--dtype 'float8'"),
        (["--out", "/no/such/folder/x.json"], "does not exist"),
    ],
)
def test_unusable_options_are_refused(options: list[str], message: str) -> None:
    ended = airtune("--model", "tiny", *options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
