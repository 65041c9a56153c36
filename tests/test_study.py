"""What a study file says, what is refused, and which runs it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airtune.cli.study import carry_on, check_search
from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.planning import METHODS
from airtune.scenario import scenario_from_dict
from airtune.study import builtin_studies, load_study, study_from
from airtune.study.comparison import best_baseline, compare, grouped
from airtune.study.conduct import conduct, known_jobs
from airtune.study.folder import read_study, save_study
from airtune.study.jobs import jobs_of, search_jobs
from airtune.study.methods import shipped_sets
from airtune.study.results import Result, best_candidate
from airtune.study.running import state_of

SMALL = """
name = "small"
base = "tiny"
seeds = [0, 1]
include = ["fedit"]

[methods.mine]
kind = "joint"
set.planning.method = "exact"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        jobs_of(load_study(written(folder, text)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_methods_seeds_and_axes_make_runs(tmp_path: Path) -> None:
    text = (
        SMALL
        + """
        [axes]
        "cell.uplink_bandwidth_hz" = [1e5, 1e6]
        [axes.clients]
        more = { devices.0.count = 4, task.train_examples = 512 }
    """
    )
    study = load_study(written(tmp_path, text))
    jobs = jobs_of(study)
    assert len(jobs) == 2 * 2 * (1 + 2 + 1)
    at = {(job.method, job.seed, job.point): job for job in jobs}
    wide = at["mine", 1, (("cell.uplink_bandwidth_hz", "1e+06"),)].values
    assert (wide["cell"]["uplink_bandwidth_hz"], wide["seed"]) == (1e6, 1)
    assert wide["planning"]["method"] == "exact"
    more = at["fedit", 0, (("clients", "more"),)].values
    assert more["devices"][0]["count"] == 4
    # The base's own bandwidth is 1e5: the same run is computed once.
    keys = {at["mine", 0, ()].key, at["mine", 0, (("cell.uplink_bandwidth_hz", "100000"),)].key}
    assert len(keys) == 1
    crossed = study.model_copy(update={"crossed": True})
    assert len(jobs_of(crossed)) == 2 * 2 * 2


def test_a_key_changes_with_all_that_decides_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(written(tmp_path, SMALL))
    keys = [job.key for job in jobs_of(study)]
    assert len(set(keys)) == len(keys)
    assert [job.key for job in jobs_of(study)] == keys
    monkeypatch.setattr("airtune.study.keys.FORMAT", 99)
    assert not set(keys) & {job.key for job in jobs_of(study)}


def test_a_plugin_counts_by_its_code_wherever_it_lies(tmp_path: Path) -> None:
    pytest.importorskip("airtune.plugins")
    study = load_study(written(tmp_path, SMALL))
    here, there = tmp_path / "mine.py", tmp_path / "other" / "mine.py"
    there.parent.mkdir()
    here.write_text("# one")
    there.write_text("# one")
    keys = [job.key for job in jobs_of(study, plugins=[str(here)])]
    assert not set(keys) & {job.key for job in jobs_of(study)}
    assert [job.key for job in jobs_of(study, plugins=[str(there)])] == keys
    here.write_text("# two")
    assert not set(keys) & {job.key for job in jobs_of(study, plugins=[str(here)])}
    with pytest.raises(InputError, match="gone"):
        jobs_of(study, plugins=[str(tmp_path / "gone.py")])


CHANGED = (
    SMALL
    + """
[axes]
"cell.radius_m" = [100.0, 200.0]
[tuned.mine]
training.learning_rate = 0.01
[budget]
rounds = 3
"""
)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("planning.method=bcd", "methods.mine"),
        ("cell.radius_m=100.0", "axes.cell.radius_m, 200"),
        ("training.learning_rate=1e-3", "tuned.mine"),
        ("rounds=4", "[budget]"),
        ("seed=4", "seeds"),
    ],
)
def test_a_change_that_a_run_would_not_get_is_refused(
    tmp_path: Path, change: str, where: str
) -> None:
    path = written(tmp_path, CHANGED)
    with pytest.raises(InputError) as refused:
        load_study(path, [change])
    text = str(refused.value)
    assert text.startswith(f"--set {change.partition('=')[0]} has no effect here: ")
    assert where in text


def test_a_change_for_every_method_may_repeat_what_the_study_has(tmp_path: Path) -> None:
    path = written(tmp_path, CHANGED)
    study = load_study(path, ["rounds=3", "training.local_steps=1"])
    assert {job.values["training"]["local_steps"] for job in jobs_of(study)} == {1}


def test_a_change_of_what_is_searched_is_refused(tmp_path: Path) -> None:
    text = SMALL + "[search]\nseed = 9\nrounds = 1\nkeys.training.learning_rate = [1e-3, 1e-2]\n"
    with pytest.raises(InputError, match=r"has no effect here: .* search.keys"):
        load_study(written(tmp_path, text), ["training.learning_rate=1e-3"])


def test_a_budget_in_virtual_time_reaches_every_run(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, SMALL + "[budget]\nrounds = 50\nvirtual_s = 30.0\n"))
    for job in jobs_of(study):
        assert (job.values["time_budget_s"], job.values["rounds"]) == (30.0, 50)
    assert "virtual_s needs rounds" in refused(tmp_path, SMALL + "[budget]\nvirtual_s = 30.0\n")


SEARCHED = (
    SMALL
    + """
[search]
rounds = 2
[search.keys]
training.learning_rate = [1e-3, 1e-2]
training.lora_rank = [2, 4]
"""
)


def test_a_search_runs_every_combination_on_held_out_training_data(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, SEARCHED))
    jobs = search_jobs(study)
    assert len(jobs) == 2 * 4
    for job in jobs:
        assert job.values["task"]["eval_part"] == "train"
        assert (job.values["seed"], job.values["rounds"]) == (1000, 2)
        # The base has alpha 8 at rank 4: the scale stays.
        training = job.values["training"]
        assert training["lora_alpha"] == 2.0 * training["lora_rank"]
    chosen = {"fedit": {"training.learning_rate": 1e-3}, "mine": {"training.learning_rate": 1e-2}}
    rates = {job.method: job.values["training"]["learning_rate"] for job in jobs_of(study, chosen)}
    assert rates == {"fedit": 1e-3, "mine": 1e-2}
    assert all(job.values["task"]["eval_part"] == "test" for job in jobs_of(study, chosen))
    assert known_jobs(study, tmp_path) is None


def test_a_search_is_refused_where_it_would_see_test_examples(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    path = written(tmp_path, SEARCHED)
    with pytest.raises(InputError, match="has no test part of its own"):
        check_search(load_study(path, [f"task.source={tmp_path / 'train.jsonl'}"]))
    folder = load_study(path, [f"task.source={tmp_path}"])
    with pytest.raises(InputError, match="has no test part of its own"):
        check_search(folder)
    (tmp_path / "test.txt").write_text("no part")
    with pytest.raises(InputError, match="has no test part of its own"):
        carry_on(folder, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
    (tmp_path / "test-00000-of-00001.jsonl").write_text("")
    check_search(folder)
    check_search(load_study(written(tmp_path, SMALL), [f"task.source={tmp_path}"]))


def test_a_byte_order_mark_is_no_fault_of_a_study_file(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_study(path) == load_study(written(tmp_path, SMALL))


def test_the_short_form_has_a_baseline_to_compare_with() -> None:
    study = study_from("tiny", ["exact", "none", "uniform", "bandwidth-only"], "0")
    kinds = {name: method.kind for name, method in study.methods.items()}
    assert kinds == {
        "exact": "joint", "none": "baseline", "uniform": "baseline", "bandwidth-only": "baseline",
    }  # fmt: skip
    assert study_from("tiny", ["random"], "0").methods["random"].kind == "joint"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (SMALL + '[axes]\n"cell.bandwidth" = [1.0]\n', "unknown key 'cell.bandwidth'"),
        (SMALL + '[axes]\n"cell.radius_m" = [-1.0]\n', "cell.radius_m = -1.0"),
        (SMALL + '[axes]\n"cell.radius_m" = 3.0\n', "axes.cell.radius_m = 3.0"),
        (SMALL + '[axes]\n"devices.9.count" = [2]\n', "there is no '9'"),
        (SMALL + "[methods.fedit]\n", "the method 'fedit' is given twice"),
        (SMALL + "[methods.mine]\n", "the method 'mine' is given twice"),
        (SMALL.replace('["fedit"]', '["fedit", "published"]'), "'fedit' is given twice"),
        (SMALL.replace('["fedit"]', '["fedot"]'), "did you mean 'fedit'"),
        (SMALL.replace("[0, 1]", "[]"), "no seeds"),
        (SMALL.replace("seeds = [0, 1]", ""), "no seeds"),
        (SMALL.replace("[0, 1]", "[0, 0]"), "0 is given twice"),
        (SMALL.replace("[0, 1]", '"4-0"'), "'4-0'"),
        (SMALL.replace("[0, 1]", "[-1]"), "-1 is not a seed"),
        (SEARCHED.replace("rounds = 2", 'rounds = 2\njudged_on = "test"'), "never on the test set"),
        (SEARCHED + 'task.eval_part = ["test"]\n', "'task.eval_part' decides what a run is judged"),
        (SEARCHED.replace("rounds = 2", ""), "'search.rounds' is missing"),
        (SEARCHED.replace("[0, 1]", "[0, 1000]"), "1000 is the search's own seed"),
        (SMALL + 'referenze = "fedit"\n', "unknown key 'methods.mine.referenze'"),
        ('referenze = "x"\n' + SMALL, "did you mean 'reference'"),
        ('reference = "x"\n' + SMALL, "reference = 'x': allowed are fedit, mine"),
        (SMALL.replace('base = "tiny"', 'base = "no.toml"'),
         "study.toml: base: cannot read scenario 'no.toml'"),
        ('name = "s"\nseed = 3\n[[devices]]\n', "study.toml is a scenario, not a study: write"),
        (SMALL.replace('base = "tiny"', ""), "'base' is missing"),
        (SMALL.replace('"exact"', '"exakt"') + "set.planning.kapa = 1\n", "did you mean 'kappa'"),
        (SMALL + "rounds_factor = 0\n", "methods.mine.rounds_factor = 0"),
        (SMALL + "[methods.other]\nset = 3\n", "methods.other.set = 3: write set.KEY = value"),
        ("set = 3\n" + SMALL, "toml: set = 3: write set.KEY = value"),
        ("axes = 5\n" + SMALL, "toml: axes = 5: write a table [axes]"),
        ("tuned = [1]\n" + SMALL, "toml: tuned = [1]: write [tuned] with METHOD = {"),
        ("tuned = { exact = 3 }\n" + SMALL, "tuned = {'exact': 3}: write [tuned]"),
        (SMALL.replace('["fedit"]', "[1]"), "include 1: give names of sets and methods"),
        (SMALL + "[tuned.fedot]\ntraining.learning_rate = 1e-3\n",
         "tuned.fedot: no method of the study takes its values; those that are tuned: fedit, mine"),
    ],
)  # fmt: skip
def test_what_the_user_can_correct_is_named_in_one_line(
    tmp_path: Path, text: str, named: str
) -> None:
    assert named in refused(tmp_path, text)


class NoPool:
    def __call__(self) -> Any:
        raise AssertionError("nothing may be run")


def test_a_folder_of_another_study_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_study(folder, load_study(written(tmp_path, SMALL)), [])
    before = (folder / "study.json").read_text()
    other = load_study(written(tmp_path, SMALL.replace('"small"', '"other"')))
    with pytest.raises(InputError, match="holds another study: 'small' on 'tiny', not 'other'"):
        conduct(other, folder, NoPool(), at_once=1, threads=1)
    assert (folder / "study.json").read_text() == before
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds 'mine.txt' and no study"):
        conduct(other, full, NoPool(), at_once=1, threads=1)
    with pytest.raises(InputError, match="no study in"):
        read_study(full)


def test_what_a_newer_version_made_is_refused(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, SMALL))
    save_study(tmp_path / "out", study, [])
    assert read_study(tmp_path / "out")[0] == study
    job = jobs_of(study)[0]
    run = tmp_path / "out" / "runs" / job.key
    run.mkdir(parents=True)
    info = {"format": 99, "status": "finished", "method": "none", "seed": 0, "scenario": {},
            "versions": {}, "started_at": ""}  # fmt: skip
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="of format 99"):
        state_of(tmp_path / "out", job)
    saved = tmp_path / "out" / "study.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "format": 2}))
    with pytest.raises(InputError, match="has format 2; this version reads 1"):
        read_study(tmp_path / "out")


def test_every_shipped_method_and_study_is_valid() -> None:
    sets = shipped_sets()
    assert list(sets) == ["published", "rivals", "joint", "ablations", "knobs", "coverage"]
    names = [name for one in sets.values() for name in one]
    assert len(set(names)) == len(names) == 48
    study = study_from("tiny", list(sets), "0")
    for job in jobs_of(study):
        scenario = scenario_from_dict(job.values)
        rule_of(scenario)
        assert scenario.planning.method in METHODS
        ranks = len(set(scenario.client_ranks))
        assert (ranks > 1) == study.methods[job.method].ranks_by_speed
    for name in builtin_studies():
        assert jobs_of(load_study(name))
    # Every rule and every way to take part of docs/methods.md is in a set.
    rules = {job.values["aggregation"]["rule"] for job in jobs_of(study)}
    assert rules == {
        "fedit", "hetlora", "flora", "flexlora", "ffa-lora", "heterofl", "fedmp", "fedspallm",
    }  # fmt: skip
    parts = {job.values["participation"]["rule"] for job in jobs_of(study)}
    assert parts == {"all", "partial", "partial-fednova", "deadline", "in-turn"}


def made(
    method: str,
    kind: str,
    losses: list[float | None],
    round_s: float = 10.0,
    seed: int = 0,
    status: str = "finished",
) -> Result:
    count = range(len(losses))
    return Result(
        method=method,
        kind=kind,
        seed=seed,
        point=(),
        key=f"{method}-{seed}",
        status=status,
        error=None if status == "finished" else "it went wrong",
        loss=tuple(losses),
        elapsed_s=tuple(round_s * k for k in count),
        uplink_bits=tuple(8.0 * k for k in count),
        downlink_bits=tuple(1.0 * k for k in count),
        flops=tuple(1.0 * k for k in count),
    )


def test_one_baseline_sets_the_target_of_all_seeds() -> None:
    results = [
        made("fedit", "baseline", [3.0, 1.0], seed=0),
        made("fedit", "baseline", [3.0, 1.3], seed=1),
        # Luckier on seed 0, worse in mean.
        made("flexlora", "baseline", [3.0, 0.5], seed=0),
        made("flexlora", "baseline", [3.0, 2.0], seed=1),
        # The lowest of all, but not run on every seed; and a rival, which sets none.
        made("flora", "baseline", [3.0, 0.1], seed=0),
        made("flora", "baseline", [3.0, 0.1], seed=1, status="failed"),
        made("few", "rival", [3.0, 0.1], seed=0),
        made("few", "rival", [3.0, 0.1], seed=1),
        made("mine", "joint", [3.0, 0.9, 1.2], 4.0, seed=0),
        made("mine", "joint", [3.0, 1.4, 1.35], 4.0, seed=1),
    ]
    assert best_baseline(grouped(results)) == "fedit"
    (comparison,) = compare(results)
    assert comparison.targets == {0: 1.0, 1: 1.3}
    own = {one.method: one for one in comparison.standings}["mine"]
    assert own.reached == 1
    assert (own.time.seeds, own.time.censored) == (2, 1)
    # It swings back above the target: what counts for the loss is its end.
    assert own.loss.value == pytest.approx(((1.2 - 1.0) + (1.35 - 1.3)) / 2)
    lost = {one.method: one for one in comparison.standings}["flora"]
    assert (lost.broken, lost.loss.lost, lost.loss.verdict) == (1, 1, "no difference shown")


def test_of_equal_losses_the_sooner_sets_the_target() -> None:
    results = [
        made("fedit", "baseline", [3.0, 1.0], 10.0),
        made("bandwidth-only", "baseline", [3.0, 1.0], 5.0),
    ]
    assert best_baseline(grouped(results)) == "bandwidth-only"


def test_a_candidate_is_judged_over_a_common_time_and_not_by_one_lucky_round() -> None:
    soon = made("a", "joint", [5.0, 2.0, 1.0, 0.9, 0.8], 2.5)
    late = made("a", "joint", [5.0, 1.0, 0.5], 20.0)
    swings = made("a", "joint", [5.0, 0.2, 3.0, 2.0, 0.1], 2.5)
    failed = made("a", "joint", [5.0, 0.0], 1.0, status="failed")
    assert best_candidate([soon, late, swings, failed]) == 0
    lower = made("a", "joint", [5.0, 2.0, 0.8, 0.8, 0.7], 2.5)
    assert best_candidate([soon, late, swings, lower]) == 3
    with pytest.raises(InputError, match="no candidate of 'a' finished: it went wrong"):
        best_candidate([failed])
