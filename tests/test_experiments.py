"""The committed rows: their tables, the scenarios that they are of, and the study files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from airtune.data import load_task
from airtune.models.loading import load_model
from airtune.models.workload import (
    SHAPES,
    StepTokens,
    full_sizes,
    memory_bytes,
    uniform_sizes,
)
from airtune.planning.cohorts import availability_of
from airtune.scenario import Scenario, load_scenario
from airtune.scenario.schema import ModelSection, TaskSection
from airtune.study import load_study
from airtune.study.comparison import compare
from airtune.study.conduct import Part
from airtune.study.jobs import jobs_of, search_jobs
from airtune.study.loading import seeds_of
from airtune.study.results import FINISHED, Result, best_candidate
from assigned import mode
from scripts import script
from test_experiments_tables import made

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SEARCHED = {"clinc150": ("fedit", "hetlora", "flexlora", "ffa-lora"), "gsm8k": ("fedit",)}
"""Studies with a search of their own, and the methods that it was made for."""
STUDIES = sorted(path.stem for path in (EXPERIMENTS / "rows").glob("*.jsonl"))


rows = script(EXPERIMENTS / "rows.py")
tables = script(EXPERIMENTS / "tables.py")
pairs = script(EXPERIMENTS / "pairs.py")
clinc150_data = script(EXPERIMENTS / "clinc150_data.py")
yahoo_data = script(EXPERIMENTS / "yahoo_data.py")


@pytest.mark.parametrize("name", STUDIES)
def test_ratios_and_differences_are_those_of_the_study(name: str) -> None:
    results = [
        replace(one, kind="baseline" if one.method == "fedit" else "joint")
        for one in tables.results_of(name)
    ]
    known = [(at, standing) for at in compare(results, "fedit") for standing in at.standings]
    for at, standing in known:
        there = [one for one in results if one.point == at.point]
        both = pairs.pairs_of(there, standing.method, "fedit")
        assert pairs.final_loss(both).estimate == standing.loss
        for key, theirs in (("elapsed_s", standing.time), ("uplink_bits", standing.uplink)):
            mine = pairs.to_target(both, key).estimate
            assert (mine.seeds, mine.censored) == (theirs.seeds, theirs.censored)
            assert [mine.value, mine.low, mine.high] == pytest.approx(
                [theirs.value, theirs.low, theirs.high]
            )


def test_a_row_is_the_result_that_it_came_from_and_a_later_one_of_another_run_replaces_it() -> None:
    result = made("heard", [3.0, 1.0])
    row = json.loads(
        json.dumps(
            {
                name: getattr(result, name)
                for name in ("method", "kind", "seed", "point", "key", "status")
            }
            | {name: getattr(result, name) for name in rows.SERIES}
            | {"metrics": result.metrics, "version": None, "commit": "a"}
        )
    )
    assert rows.result_of(row) == result
    same, other = row | {"commit": "b"}, row | {"key": "another", "commit": "b"}
    assert rows.merged([row], [same]) == [row]
    assert rows.merged([row], [other]) == [other]
    mended = row | {"loss": [3.0, 0.9], "commit": "b"}  # the same run by a mended program
    assert rows.merged([row], [mended]) == [mended]
    assert len(rows.merged([row], [other | {"seed": 1}])) == 2


def test_the_documents_hold_what_the_committed_rows_hold() -> None:
    # Out of date? `python experiments/tables.py` writes them.
    whole, front = (path.read_text(encoding="utf-8") for path in tables.DOCUMENTS)
    assert tables.with_tables(whole) == whole
    assert tables.with_tables(front) == front
    assert "STALE" not in tables.with_tables("<!-- aims -->\nSTALE\n<!-- end -->\n")
    assert all(f"<!-- {name} -->" in whole for name in ("short-clinc150", "aims", *tables.STUDIES))
    assert "<!-- front -->" in front


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_file_resolves_to_the_scenarios_of_the_committed_rows(name: str) -> None:
    committed = rows.read_rows(EXPERIMENTS / "rows" / f"{name}.jsonl")
    jobs = {
        (job.method, job.seed, job.point): job.values
        for job in jobs_of(load_study(EXPERIMENTS / f"{name}.toml"))
    }
    for row in committed:
        point = tuple((axis, label) for axis, label in row["point"])
        today = jobs[row["method"], row["seed"], point]
        then = Scenario.model_validate(row["scenario"]).model_dump(mode="json")
        for section, key in (("task", "source"), ("planning", "costs"),
                             ("participation", "availability")):  # fmt: skip
            # Files: where they lay is of no account, only whether there was one.
            for values in (today, then):
                values[section][key] = values[section].get(key) is not None or None
        today["task"]["source"] = then["task"]["source"]  # given on the command line
        assert today == then, (row["method"], row["seed"])
        assert row["commit"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_command_of_a_row_does_that_run_alone(name: str) -> None:
    known = jobs_of(load_study(EXPERIMENTS / f"{name}.toml"))
    for row in rows.read_rows(EXPERIMENTS / "rows" / f"{name}.jsonl"):
        *words, option, setting = shlex.split(row["command"])
        assert words[:4] == ["airtune", "study", "run", f"experiments/{name}.toml"]
        assert words[4::2] == ["--methods", "--seeds"]
        part = Part((words[5],), seeds_of(words[7], "--seeds"))
        own = {(job.method, job.seed) for job in known if part.holds(job)}
        assert own == {(row["method"], row["seed"])}
        assert (option, setting) == ("--set", "task.source=FOLDER")


def test_a_command_names_the_file_of_its_study_and_what_was_set() -> None:
    assert rows.command_of("gpu-gsm8k", "heard", 21, ["task.source=FOLDER", "name=a b"]) == (
        "airtune study run experiments/gpu/gsm8k.toml --methods heard --seeds 21 "
        "--set task.source=FOLDER --set 'name=a b'"
    )
    own = [EXPERIMENTS / f"{name}.toml" for name in tables.STUDIES]
    for path in [*own, *(EXPERIMENTS / "gpu").glob("*.toml")]:
        assert rows.file_of(load_study(path).name) == path


def test_rows_are_not_written_without_the_commit_that_made_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        rows.main(["nowhere"])
    assert "--commit" in capsys.readouterr().err


def test_every_study_file_is_valid() -> None:
    counts = {name: len(jobs_of(load_study(EXPERIMENTS / f"{name}.toml"))) for name in
              ("clinc150", "few-texts", "cells", "memory", "gsm8k", "yahoo", "gemma")}  # fmt: skip
    assert counts["clinc150"] == 20 * 5
    assert counts["cells"] == 8 * 5 * 2
    assert counts["memory"] == 8 * 5
    for name in ("smoke", "search-clinc150", "search-gsm8k"):
        assert search_jobs(load_study(EXPERIMENTS / f"{name}.toml"))


SOURCES = {"classification": "clinc150", "gsm8k": "gsm8k"}


def asked_for() -> dict[str, list[str]]:
    """What the files want to be drawn, and the files; not of Yahoo Answers, which is not here."""
    wanted: dict[str, list[str]] = {}
    for path in [*EXPERIMENTS.glob("*.toml"), *EXPERIMENTS.glob("gpu/*.toml")]:
        if path.stem in ("yahoo", "smoke", "knobs"):  # the last two generate their texts
            continue
        if path.stem.startswith("pilot"):
            jobs = [load_scenario(str(path)).model_dump(mode="json")]
        else:
            study = load_study(path)
            jobs = [job.values for job in (search_jobs(study) or jobs_of(study))]
        for task in {json.dumps(values["task"]) for values in jobs}:
            wanted.setdefault(task, []).append(f"{path.parent.name}/{path.name}")
    return wanted


@pytest.mark.slow
def test_there_are_as_many_texts_as_the_studies_ask_for(shared_dir: Path) -> None:
    tokenizer = load_model(ModelSection(id="smollm2-135m-instruct"), seed=0).tokenizer
    for task, files in asked_for().items():
        section = TaskSection.model_validate_json(task)
        source = str(shared_dir / "data" / SOURCES[section.name])
        drawn = load_task(
            section.model_copy(update={"source": source}), seed=12, tokenizer=tokenizer
        )
        counts = (len(drawn.train), len(drawn.test))
        assert counts == (section.train_examples, section.eval_examples), files


@pytest.mark.parametrize("study", ["memory.toml", "gpu/memory.toml"])
def test_where_memory_binds_no_whole_model_fits_and_every_most_pruned_one_does(study: str) -> None:
    shape = SHAPES["smollm2-135m-instruct"]
    shortest = StepTokens(rows=4, length=9, label_tokens=8)
    longest = StepTokens(rows=4, length=40, label_tokens=24)
    for job in jobs_of(load_study(EXPERIMENTS / study)):
        scenario = Scenario.model_validate(job.values)
        pruned = scenario.pruning.max_pruning
        fits = availability_of(scenario)
        if fits is None:
            assert pruned == 0.6
        else:
            assert fits.never() == 4
            assert pruned == 0.0
        few = {one.memory_bytes for one in scenario.devices if one.memory_bytes is not None}
        needs = partial(memory_bytes, shape, bytes_per_weight=2)
        whole, least = full_sizes(shape), uniform_sizes(shape, 0.6)
        assert needs(whole, shortest, mode(1)) > max(few)
        assert needs(least, longest, mode(scenario.training.lora_rank)) < min(few)


def test_clinc150s_own_files_become_texts_with_their_domain(tmp_path: Path) -> None:
    texts = {
        "oos_val": [["a show", "oos"]],
        "val": [["hello, you", "greeting"]],
        "train": [["what is 'dog' in french", "translate"], ["hi", "greeting"]],
        "oos_test": [["the moon", "oos"]],
        "test": [["bye", "goodbye"]],
        "oos_train": [["a circle", "oos"]],
    }
    domains = {"travel": ["translate"], "small_talk": ["greeting", "goodbye"]}
    for name, content in (("data_full", texts), ("domains", domains)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    made = clinc150_data.write_parts(tmp_path, tmp_path / "made")
    # Training texts first, then validation texts; none that is out of scope.
    assert (tmp_path / "made" / "train.csv").read_bytes() == (
        b"prompt,answer,label\n"
        b"what is 'dog' in french,travel,travel\n"
        b"hi,small talk,small_talk\n"
        b'"hello, you",small talk,small_talk\n'
    )
    test = b"prompt,answer,label\nbye,small talk,small_talk\n"
    assert (tmp_path / "made" / "test.csv").read_bytes() == test
    assert made["test"] == (1, hashlib.sha256(test).hexdigest())
    assert made["train"][0] == 3
    with pytest.raises(SystemExit, match=r"train\.csv and test\.csv .* not the texts"):
        clinc150_data.main(tmp_path, tmp_path / "made")


@pytest.mark.parametrize(
    "source",
    ['sentence\tlabel\r\n"what is ""x"", really?"\t0\r\nwho won\t5\r\nwho won\t5\r\n',
     '0\twhat is "x", really?\n5\twho won\n5\twho won\n'],
)  # fmt: skip
def test_yahoos_texts_have_classes_from_1_and_are_on_one_side(tmp_path: Path, source: str) -> None:
    (tmp_path / "texts").write_text(source, encoding="utf-8", newline="")
    made = yahoo_data.write_parts(tmp_path / "texts", tmp_path / "made")
    rows = []
    for part in ("train", "test"):
        content = (tmp_path / "made" / f"{part}.csv").read_bytes()
        assert made[part] == hashlib.sha256(content).hexdigest()
        header, *own = csv.reader(content.decode().splitlines())
        assert header == ["text", "label"]
        assert len({row[0] for row in rows} & {row[0] for row in own}) == 0
        rows += own
    assert sorted(rows) == [['what is "x", really?', "1"], ["who won", "6"], ["who won", "6"]]
    with pytest.raises(SystemExit, match="not the texts of the study"):
        yahoo_data.main(tmp_path / "texts", tmp_path / "made")


def test_the_expected_files_are_those_of_the_data_folder(shared_dir: Path) -> None:
    for name, (count, digest) in clinc150_data.STUDIED.items():
        content = (shared_dir / "data" / "clinc150" / f"{name}.csv").read_bytes()
        assert content.count(b"\n") == count + 1
        assert hashlib.sha256(content).hexdigest() == digest


def test_committed_numbers_name_no_folder_of_a_machine() -> None:
    for name in STUDIES:
        text = (EXPERIMENTS / "rows" / f"{name}.jsonl").read_text(encoding="utf-8")
        assert '"/' not in text
        assert not re.search(r"[= ]/", text)


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name, methods in SEARCHED.items() for method in methods],
)
def test_tuned_values_are_those_that_the_search_chose(name: str, method: str) -> None:
    records = json.loads((EXPERIMENTS / f"search-{name}.json").read_text())
    study = tomllib.loads((EXPERIMENTS / f"{name}.toml").read_text())
    candidates = [one for one in records if one["method"] == method]
    if method == "flexlora":  # rank 1 was as good, and leaves little of it: README.md beside them
        candidates = [one for one in candidates if one["training.lora_rank"] > 1]
    results = [
        Result(
            method=method,
            kind="baseline",
            seed=1000,
            point=(),
            key="",
            status=FINISHED,
            loss=(None, *one["held_out_loss"]),
            elapsed_s=(0.0, *one["elapsed_s"]),
        )
        for one in candidates
    ]
    chosen = candidates[best_candidate(results)]
    tuned = study["tuned"][method]["training"]
    for key in ("learning_rate", "lora_rank"):
        assert chosen[f"training.{key}"] == tuned[key]


@pytest.mark.parametrize(("name", "candidates"), [("clinc150", 34), ("gsm8k", 2)])
def test_searched_values_are_of_the_study_files_grid(name: str, candidates: int) -> None:
    records = json.loads((EXPERIMENTS / f"search-{name}.json").read_text())
    study = tomllib.loads((EXPERIMENTS / f"search-{name}.toml").read_text())
    grid = study["search"]["keys"]["training"]
    assert {one["method"] for one in records} == set(study["include"]) == set(SEARCHED[name])
    assert {one["training.learning_rate"] for one in records} == set(grid["learning_rate"])
    assert {one["training.lora_rank"] for one in records} == set(grid["lora_rank"])
    assert len({tuple(one.values())[:3] for one in records}) == len(records) == candidates
