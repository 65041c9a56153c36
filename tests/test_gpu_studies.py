"""The GPU pack's studies: those one folder up, longer; how many of their runs share a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airtune.models.shapes import SHAPES
from airtune.study import load_study
from airtune.study.jobs import jobs_of
from airtune.study.pools import needed_bytes, parameters_of
from airtune.study.schema import Study
from gpu_pack import PACK, imported

STUDIES = ("clinc150", "cells", "memory", "gsm8k", "yahoo", "gemma", "large")


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    yield from imported(monkeypatch)


@pytest.mark.parametrize("name", ["clinc150", "cells", "memory", "gsm8k", "yahoo", "gemma"])
def test_the_packs_methods_are_those_of_the_study_that_it_lengthens(
    name: str, pack: SimpleNamespace
) -> None:
    longer = load_study(PACK / f"{name}.toml")
    study = load_study(PACK.parent / f"{name}.toml")
    assert name in pack.run.STUDIES
    assert longer.reference == study.reference == "fedit"
    for method in study.methods:
        assert _settings(longer, method) == _settings(study, method)
    assert longer.axes == study.axes
    if name != "gsm8k":  # which has the choices of all its methods from the others
        assert longer.tuned.items() >= study.tuned.items()
    # Everything that is compared in one study of the pack is compared in each but the last two.
    full = load_study(PACK / "clinc150.toml").methods.keys() - {"bcd-longer"}
    lacking = {"memory": {"fedbuff"}}.get(name, set())
    assert name == "gemma" or longer.methods.keys() >= full - lacking


def _settings(study: Study, method: str) -> dict[str, Any]:
    own = study.methods[method].model_dump()
    fits = own["set"].pop("participation.availability", "")
    return {**own, "fits": Path(fits).name}


def test_runs_share_a_gpu_by_their_memory(pack: SimpleNamespace) -> None:
    needs = {}
    for name in ("clinc150", "gsm8k"):
        values = jobs_of(load_study(PACK / f"{name}.toml"))[0].values
        needs[name] = pack.machine.run_bytes(values, 1.35e8, 49_152)
    assert needs["gsm8k"] > needs["clinc150"]  # longer texts
    assert pack.machine.runs_at_once(80e9, 10e9, 16) == 7
    assert pack.machine.runs_at_once(80e9, 1e9, 16) == 16
    assert pack.machine.runs_at_once(5e9, 10e9, 16) == 0


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_has_five_times_the_rounds_and_1000_test_texts(name: str) -> None:
    study = load_study(PACK / f"{name}.toml")
    # `large` is CLINC150 with another model and has no study of its own one folder up.
    shorter = load_study(PACK.parent / ("clinc150.toml" if name == "large" else f"{name}.toml"))
    assert study.reference == shorter.reference
    before = {job.method: job.values for job in jobs_of(shorter)}
    for job in jobs_of(study):
        factor = study.methods[job.method].rounds_factor
        assert job.values["rounds"] == round(5 * factor * (shorter.budget.rounds or 0))
        assert job.values["task"]["eval_examples"] == 1000
        assert job.values["task"]["max_tokens"] == (512 if name in ("gsm8k", "yahoo") else 40)
        if job.method in before:
            assert job.values["rounds"] == 5 * before[job.method]["rounds"]
            assert before[job.method]["task"]["eval_examples"] == 256
    told = (PACK / "README.md").read_text()
    assert "five times the rounds" in told
    rounds = sum(job.values["rounds"] for job in jobs_of(study))
    (row,) = (line for line in told.splitlines() if line.startswith(f"| `{name}` |"))
    assert row.endswith(f"| {len(jobs_of(study))} | {rounds:,} |")


def test_the_answers_of_a_run_are_generated_within_half_a_call() -> None:
    values = jobs_of(load_study(PACK / "gsm8k.toml"))[0].values
    evaluation = values["evaluation"]
    assert evaluation["generate"]
    assert evaluation["generate_examples"] == 1000
    batches = math.ceil(evaluation["generate_examples"] / evaluation["generate_batch_size"])
    # 416 tokens: the longest answer of GSM8K's test part. A tenth of a second a token is what
    # several runs at once may take; a round that the end of a call cuts off begins again.
    seconds = 0.1 * batches * (3 * 416 // 2)
    assert seconds < 60 * 9 / 2


@pytest.mark.parametrize(
    ("model", "parameters"), [("smollm2-135m-instruct", 1.345e8), ("gemma-3-270m", 2.681e8)]
)
def test_several_runs_of_a_built_in_model_begin_at_once(
    model: str, parameters: float, pack: SimpleNamespace
) -> None:
    assert parameters_of(model) == pytest.approx(parameters, rel=1e-3)
    assert pack.machine.size(model) == (parameters_of(model), SHAPES[model].vocab)
    # Not known, the first run would go alone until it has ended.
    assert needed_bytes({"model": {"id": model, "dtype": "bfloat16"}}) is not None


def test_fewer_runs_share_a_gpu_than_fit(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airtune.study.pools.free_cores", lambda: 16)
    found = pack.machine.Gpu("G", 79e9, 85e9)
    clinc150, gsm8k = (
        pack.run._first_run(load_study(PACK / f"{name}.toml")) for name in ("clinc150", "gsm8k")
    )
    given = SimpleNamespace(jobs=None)
    assert pack.run._at_once(clinc150, found, given) == 4
    assert pack.run._at_once(gsm8k, found, given) == 2
    assert pack.run._at_once(clinc150, found, SimpleNamespace(jobs=16)) == 16
