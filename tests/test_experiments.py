"""The experiments' drivers go all the way on a tiny model, and go on where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airtune.record import read_record
from airtune.scenario import load_scenario

CORE = Path(__file__).resolve().parents[1] / "experiments" / "core"
FIELDS = (
    "target_loss",
    "time_to_target_s",
    "uplink_bits_to_target",
    "downlink_bits_to_target",
    "flops_to_target",
    "final_loss",
    "worst_client_loss",
    "exact_match",
    "accuracy",
    "commit",
)


def core(out: Path, *arguments: str, driver: str = "run.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CORE / driver), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_from_search_to_figures_and_nothing_is_done_twice(tmp_path: Path) -> None:
    asked = ("--smoke", "--methods", "exact,fedit", "--seeds", "0", "--set", "rounds=1")
    made = core(tmp_path, *asked)
    assert made.returncode == 0, made.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in rows] == ["exact", "fedit"]
    assert all(field in row for row in rows for field in FIELDS)
    fedit = rows[1]
    # The only baseline sets the target, and so reaches it, at the latest at its own end.
    assert fedit["target_loss"] >= fedit["final_loss"]
    record = read_record(tmp_path / "smoke" / "fedit" / "seed-0" / "run")
    reached = next(r for r in record.rounds if r.eval_loss <= fedit["target_loss"])  # type: ignore[operator]
    assert fedit["time_to_target_s"] == reached.elapsed_s
    upto = record.rounds[: reached.round]
    assert fedit["uplink_bits_to_target"] == sum(r.uplink_bits for r in upto)
    assert fedit["flops_to_target"] == sum(r.flops for r in upto)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 5

    # One run is lost: only that one is made again, to the same result.
    before = (tmp_path / "results.json").read_text()
    (tmp_path / "smoke" / "exact" / "seed-0" / "result.json").unlink()
    again = core(tmp_path, *asked)
    assert again.stderr.count(": done") == 1

    def without_times(text: str) -> list[dict[str, object]]:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in json.loads(text)]

    after = (tmp_path / "results.json").read_text()
    assert without_times(after) == without_times(before)


def test_what_the_user_can_correct_is_named(tmp_path: Path) -> None:
    for arguments, named in (
        ((), "--gsm8k"),
        (("--smoke", "--methods", "magic"), "magic"),
        (("--smoke", "--methods", ","), "at least one of exact"),
        (("--smoke", "--seeds", "0,b"), "--seeds '0,b'"),
        (("--smoke", "--jobs", "0"), "--jobs"),
        (("--gsm8k", str(tmp_path)), "train.jsonl"),
    ):
        refused = core(tmp_path / "out", *arguments)
        assert refused.returncode == 2
        assert named in refused.stderr
        assert "Traceback" not in refused.stderr


def made(
    method: str, losses: list[float | None], round_s: float = 10.0, bits: float = 8.0, seed: int = 0
) -> dict[str, object]:
    """A result with these losses, the first before training, of rounds that are alike."""
    count = range(len(losses))
    return {
        "task": "gsm8k",
        "method": method,
        "seed": seed,
        "settings": ["seed=0", 'task.source="/home/somebody"'],
        "rounds": len(losses) - 1,
        "final_loss": losses[-1],
        "worst_client_loss": None if method == "bcd" else 2.0,
        "curve": {
            "loss": losses,
            "elapsed_s": [round_s * k for k in count],
            "uplink_bits": [bits * k for k in count],
            "downlink_bits": [0.0 for k in count],
            "flops": [1e12 * k for k in count],
        },
    }


def by_name(table: str) -> dict[str, str]:
    """The lines of a table by their method."""
    return {line.split("`")[1]: line for line in table.splitlines() if "`" in line}


def test_results_and_table_say_who_reached_the_target_and_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import collect, table

    rows = collect(
        [
            made("fedit", [3.0, 2.0, 1.0], 10.0, 8.0),
            # The same losses in less time: of equals the sooner sets the target.
            made("bandwidth-only", [3.0, 2.0, 1.0], 5.0, 8.0),
            made("flexlora", [3.0, 2.0, 1.5], 10.0, 4.0),
            # Lower, but no baseline: it sets no target.
            made("flexlora-4-bit", [3.0, 2.0, 0.5], 10.0, 1.0),
            made("exact", [3.0, 2.0, 1.1], 5.0, 7.0),
            made("exact-combined", [3.0, 1.5, 0.9, 0.4], 2.0, 2.0),
            made("deadline-4-bit", [3.0, 0.9, 1.3], 5.0, 8.0),
            made("bcd", [3.0, 2.0, 1.1], 6.0, 7.0),
        ]
    )
    by_method = {row["method"]: row for row in rows}
    assert {row["target_loss"] for row in rows} == {1.0}
    assert all(row["settings"] == ["seed=0"] for row in rows)
    assert by_method["exact-combined"]["time_to_target_s"] == 4.0
    assert by_method["exact-combined"]["uplink_bits_to_target"] == 4.0
    assert by_method["exact"]["time_to_target_s"] is None
    lines = by_name(table(rows, "gsm8k"))
    assert (
        "| 1 | 3 | 0.400 | -0.600 | 2.000 | 0.30 | 0.38 | 3.0 | 1 of 1 | 0.40 | 0.25 |"
        in (lines["exact-combined"])
    )
    assert "| 2 | 1.100 | +0.100 | – | 0.60 |" in lines["bcd"]
    assert "0 of 1 | – | –" in lines["exact"]


def test_the_short_table_has_means_over_seeds_and_shares_of_fedit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import README_METHODS, short_table

    rows = [
        made("fedit", [3.0, 1.0], 10.0, 8.0, seed=0),
        made("fedit", [3.0, 2.0], 20.0, 8.0, seed=1),
        made("exact", [3.0, 2.0, 1.5], 2.0, 2.0, seed=0),
        made("exact", [3.0, 2.0, 1.6], 2.0, 4.0, seed=1),
    ]
    heads, _, *lines = short_table(rows).splitlines()
    assert heads == "| method | what it does | GSM8K: test loss | time | uplink |"
    assert [line.split("`")[1] for line in lines] == list(README_METHODS)
    shown = by_name(short_table(rows))
    assert shown["fedit"].endswith("| 1.500 | 1.00 | 1.00 |")
    assert shown["exact"].endswith("| 1.550 | 0.30 | 0.75 |")
    assert shown["in-turn"].endswith("| – | – | – |")


def test_one_baseline_sets_the_target_of_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import collect, table

    rows = collect(
        [
            made("fedit", [3.0, 1.0], seed=0),
            made("fedit", [3.0, 1.3], seed=1),
            # Luckier on seed 0, worse in mean.
            made("flexlora", [3.0, 0.5], seed=0),
            made("flexlora", [3.0, 2.0], seed=1),
            # The lowest of all, but not run on every seed.
            made("flora", [3.0, 0.1], seed=0),
            made("exact", [3.0, 0.9], seed=0),
            made("exact", [3.0, 1.4], seed=1),
        ]
    )
    assert {(row["seed"], row["target_loss"]) for row in rows} == {(0, 1.0), (1, 1.3)}
    lines = by_name(table(rows, "gsm8k"))
    assert "1 of 2 | 1.00 | 1.00 |" in lines["exact"]
    assert "2 of 2 | 1.00 | 1.00 |" in lines["fedit"]


def test_seeds_that_only_some_were_run_on_choose_no_target_and_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import collect, table

    both = [
        *(made("fedit", [3.0, 1.0 + seed], seed=seed) for seed in (0, 1)),
        *(made("flexlora", [3.0, 0.9 + seed], 5.0, seed=seed) for seed in (0, 1)),
        *(made("exact", [3.0, 0.8 + seed, 1.0 + 2 * seed], 4.0, seed=seed) for seed in (0, 1)),
        # The sooner, on one seed; the other joint plan is there on both.
        made("exact-combined", [3.0, 0.5], 1.0, seed=0),
        made("exact-combined", [3.0, 2.5], 1.0, seed=1),
    ]
    # A third seed that has only begun, on which all are far lower.
    third = [made("fedit", [3.0, 0.1], seed=2), made("exact-combined", [3.0, 0.1], 1.0, seed=2)]
    rows = collect([*both, *third])
    assert {(row["seed"], row["target_loss"]) for row in rows} == {(0, 0.9), (1, 1.9), (2, None)}
    lines = by_name(table(rows, "gsm8k"))
    assert "2 of 2 | 0.80 |" in lines["exact"]
    assert lines["exact-combined"].startswith("| `exact-combined` | 3 |")
    assert "1 of 2 | 0.20 |" in lines["exact-combined"]


def test_what_diverged_or_was_not_evaluated_breaks_no_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import collect, table

    rows = collect([made("fedit", [1.0, None, 2.0]), made("exact", [1.0, None, 1.5])])
    assert [row["time_to_target_s"] for row in rows] == [20.0, 20.0]
    assert "| 1 of 1 | 1.00 | 1.00 |" in table(rows, "gsm8k").splitlines()[2]


def test_the_committed_targets_are_those_of_the_committed_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import collect

    rows = json.loads((CORE / "results.json").read_text())
    assert collect(rows) == rows


def test_other_cells_are_run_and_compared_with_fedit_in_the_same_cell(tmp_path: Path) -> None:
    asked = ("--smoke", "--cells", "twice the clients")
    made = core(tmp_path, *asked, driver="cells.py")
    assert made.returncode == 0, made.stderr
    rows = json.loads((tmp_path / "cells.json").read_text())
    assert {row["cell"] for row in rows} == {"twice the clients"}
    runs = {row["method"]: row for row in rows}
    # FedIT is the only baseline here, so that its own end is everybody's target.
    assert {row["target_loss"] for row in rows} == {runs["fedit"]["final_loss"]}
    folder = tmp_path / "twice-the-clients" / "smoke" / "exact" / "seed-0" / "run"
    assert len(read_record(folder).rounds[0].clients) == 8
    assert (tmp_path / "cells.svg").is_file()
    refused = core(tmp_path, "--smoke", "--cells", "the moon", driver="cells.py")
    assert (refused.returncode, "the moon" in refused.stderr) == (2, True)
    assert "twice the clients" in refused.stderr


def test_shares_of_other_cells_are_of_fedits_own_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from cells import table

    def run(
        cell: str, method: str, seed: int, loss: float, time: float | None
    ) -> dict[str, object]:
        return {
            "cell": cell,
            "method": method,
            "seed": seed,
            "final_loss": loss,
            "time_to_target_s": time,
            "uplink_bits_to_target": None if time is None else time / 2,
            "curve": {"elapsed_s": [0.0, 5.0, 10.0 if method == "fedit" else 6.0]},
        }

    lines = table(
        [
            run("far", "fedit", 0, 1.0, 10.0),
            run("far", "fedit", 1, 2.0, 8.0),
            run("far", "exact", 0, 1.5, 2.0),
            run("far", "exact", 1, 1.9, 4.0),
            run("near", "fedit", 0, 1.0, 10.0),
            run("near", "fedit", 1, 1.0, 10.0),
            run("near", "exact", 0, 1.1, None),
            run("near", "exact", 1, 1.1, 4.0),
        ]
    ).splitlines()
    assert lines[2:] == [
        "| far | `exact` | +0.200 | 0.60 | 0.35 | 0.35 |",
        "| near | `exact` | +0.100 | 0.60 | – | – |",
    ]


def test_a_candidate_is_judged_over_a_common_time_and_not_by_one_lucky_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from gathering import best_candidate

    def row(losses: list[float], end_s: float) -> dict[str, object]:
        times = [end_s * k / (len(losses) - 1) for k in range(len(losses))]
        return {"curve": {"elapsed_s": times, "loss": losses}}

    found = {"soon": row([5.0, 2.0, 1.0, 0.9, 0.8], 10.0), "late": row([5.0, 1.0, 0.5], 40.0)}
    assert best_candidate(found) == "soon"
    found["swings"] = row([5.0, 0.2, 3.0, 2.0, 0.1], 10.0)
    assert best_candidate(found) == "soon"
    found["lower"] = row([5.0, 2.0, 0.8, 0.8, 0.7], 10.0)
    assert best_candidate(found) == "lower"


@pytest.mark.parametrize("path", sorted(CORE.glob("*.toml")), ids=lambda path: path.name)
def test_every_method_is_a_valid_scenario(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CORE))
    from methods import METHODS, rank_settings

    from airtune.merging.rules import rule_of
    from airtune.planning import METHODS as PLANNING

    for method in METHODS.values():
        assert method.tuned_as is None or METHODS[method.tuned_as].tuned_as is None
        scenario = load_scenario(path, method.settings)
        if method.unequal_ranks:
            settings = rank_settings(scenario, scenario.training.lora_rank)
            scenario = load_scenario(path, [*method.settings, *settings])
            assert len(set(scenario.client_ranks)) > 1
            assert max(scenario.client_ranks) == scenario.training.lora_rank
        rule_of(scenario)
        assert scenario.planning.method in PLANNING
    if path.stem != "smoke":
        assert len(scenario.client_names) == 8
        assert scenario.partition.alpha == 0.3
