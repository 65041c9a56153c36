from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from airtune.cli import main
from airtune.planning.costs import KnobCosts, Measured
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.round_plan import plan_round
from airtune.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.json"))
CELL = str(ROOT / "examples" / "cell.json")


def run(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple:
    monkeypatch.setattr(sys, "argv", ["airtune", "plan", *words])
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.fixture
def airtune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *words: run(*words, capsys=capsys, monkeypatch=monkeypatch)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_planned(path: Path, airtune) -> None:
    status, out, _ = airtune(str(path), "--json")
    assert status == 0
    made = json.loads(out)
    assert made["method"] == "exact"
    assert 0 <= made["gap"] <= 1e-6
    assert made["lower_bound_s"] <= made["objective_s"]


def test_the_table_says_who_is_last_and_what_binds(airtune) -> None:
    status, out, _ = airtune(CELL)
    assert status == 0
    for word in ("raspberry", "what binds", "min_pruning", "of the band in use", "gap", "Q 0.0583"):
        assert word in out


def test_other_methods_and_changed_keys(airtune) -> None:
    best = json.loads(airtune(CELL, "--json")[1])
    status, out, _ = airtune(CELL, "--json", "--method", "none")
    made = json.loads(out)
    assert status == 0
    assert made["method"] == "none"
    assert made["objective_s"] > best["objective_s"]
    assert made["lower_bound_s"] == pytest.approx(best["lower_bound_s"])
    words = (CELL, "--json", "--set", "clients.raspberry.compute_full_s=30", "--set", "kappa=0.2")
    assert json.loads(airtune(*words)[1])["objective_s"] < best["objective_s"]
    slow = json.loads(airtune(CELL, "--json", "--set", "clients.*.snr_hz=1e6")[1])
    assert slow["objective_s"] > best["objective_s"]


def test_whole_blocks(airtune) -> None:
    status, out, _ = airtune(CELL, "--json", "--channel-mhz", "20", "--scs-khz", "30")
    assert status == 0
    made = json.loads(out)
    assert sum(client["blocks"] for client in made["clients"]) <= 51
    assert made["block_loss"] >= 0
    assert "whole blocks cost" in airtune(CELL, "--block-hz", "180e3", "--blocks", "100")[1]


def test_a_sweep_prints_and_draws(tmp_path: Path, airtune) -> None:
    figure = tmp_path / "latency.svg"
    status, out, _ = airtune(CELL, "--sweep", "bandwidth_hz=1e6:1e8:4", "--out", str(figure))
    assert status == 0
    assert "bandwidth_hz" in out
    assert figure.read_text().lstrip().startswith("<?xml")
    rows = json.loads(airtune(CELL, "--sweep", "clients=5:10:2", "--json")[1])
    assert [row["clients"] for row in rows] == [5, 10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.json"], "absent.json: cannot be read (No such file or directory)"),
        ([CELL, "--method", "magic"], "method 'magic' is unknown; allowed: exact, bcd"),
        ([CELL, "--set", "kappa=-1"], "kappa: -1.0 is not allowed"),
        ([CELL, "--set", "kapa=1"], "unknown key 'kapa'"),
        ([CELL, "--set", "kappa"], "--set 'kappa' is not allowed"),
        ([CELL, "--set", "clients.nobody.snr_hz=1"], "no client 'nobody'"),
        ([CELL, "--set", "clients.laptop.snr_hz=0"], "client 'laptop': snr_hz 0.0"),
        ([CELL, "--tolerance", "2"], "tolerance 2.0 is not allowed"),
        ([CELL, "--sweep", "colour=1:2:3"], "sweep 'colour=1:2:3' is not allowed"),
        ([CELL, "--out", "a.svg"], "--out 'a.svg' is for the figure of a --sweep"),
        ([CELL, "--blocks", "5"], "--blocks needs --block-hz"),
        ([CELL, "--channel-mhz", "21"], "2.1e+07 Hz is no 5G channel"),
        ([CELL, "--channel-mhz", "20", "--blocks", "5"], "--channel-mhz sets the blocks"),
        ([CELL, "--block-hz", "1e5", "--sweep", "kappa=0.1:0.2:2"], "without whole blocks"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], message: str, airtune) -> None:
    status, out, err = airtune(*words)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_file_that_is_no_json_is_named(tmp_path: Path, airtune) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"kappa": ')
    status, _, err = airtune(str(path), "--set", "kappa=0.3")
    assert status == 2
    assert "broken.json: line 1, column 11: not JSON" in err


def test_planning_loads_neither_torch_nor_scipy() -> None:
    # What is loaded is what the start costs; scipy alone would double it.
    code = (
        "import sys; sys.argv = ['airtune', 'plan', sys.argv[1], '--json']\n"
        "from airtune.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'scipy', 'transformers', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, CELL], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def costs_file(folder: Path) -> str:
    made = KnobCosts(
        rank={8: Measured(cost=0.0), 1: Measured(cost=0.02)},
        bits={16: Measured(cost=0.0), 2: Measured(cost=0.05)},
        steps={1.0: Measured(cost=0.0), 0.5: Measured(cost=0.5)},
        absent=Measured(cost=0.8),
        pruning={0.5: Measured(cost=0.4)},
        provenance={"made": "for a test"},
    )
    path = folder / "costs.json"
    path.write_text(made.model_dump_json())
    return str(path)


def test_a_scenario_with_knobs_is_planned_as_its_run_plans_it(tmp_path: Path, airtune) -> None:
    words = ["tiny", "--set", "planning.knobs=all", "--set",
             f"planning.costs={costs_file(tmp_path)}", "--set", "planning.kappa=0.9",
             "--set", "devices.1.utilisation=2e-6", "--round", "2"]  # fmt: skip
    status, out, err = airtune(*words, "--json")
    assert status == 0, err
    made = json.loads(out)
    scenario = load_scenario("tiny", [words[i + 1] for i, w in enumerate(words) if w == "--set"])
    expected = plan_round(scenario, situation_of_scenario(scenario, 2))
    assert made["objective_s"] == expected.plan.objective_s
    assert [client["mode"] for client in made["clients"]] == list(expected.plan.modes or ())
    assert None in expected.plan.modes
    powers = [profile.power_w for profile in situation_of_scenario(scenario, 2).profiles]
    for client, power in zip(made["clients"], powers, strict=True):
        assert ("energy_j" in client) == (None not in powers)
        if power is not None and None not in powers:
            assert client["energy_j"] == pytest.approx(power * client["compute_s"])
    status, out, err = airtune(*words)
    assert status == 0, err
    short = next(mode for mode in expected.modes if mode is not None)
    cell = f"{short.local_steps}, {short.rank}, {short.bits_per_value}"
    for word in ("steps, rank", "sits out", cell, "clients sit the round out"):
        assert word in out
    other = json.loads(airtune(*words, "--json", "--method", "bcd-knobs")[1])
    assert other["method"] == "bcd-knobs"
    assert other["objective_s"] >= made["lower_bound_s"]


def test_a_participation_rule_is_planned_too(airtune) -> None:
    rule = ("tiny", "--json", "--set", "participation.rule=deadline", "--set",
            "participation.left_out_cost=0.3", "--set", "devices.1.utilisation=2e-6")  # fmt: skip
    made = json.loads(airtune(*rule)[1])
    assert None in [client["mode"] for client in made["clients"]]
    status, _, err = airtune(*rule, "--sweep", "bandwidth_hz=1e6:1e8:2")
    assert status == 2
    assert "leave them out, or planning.knobs and participation.rule" in err


def test_a_scenarios_own_method_tolerance_and_blocks_are_planned_with(airtune) -> None:
    def planned(*words: str) -> dict:
        status, out, said = airtune("demo", "--json", *words)
        assert status == 0, said
        return json.loads(out)

    best = planned()
    assert planned("--set", "planning.method=none")["method"] == "none"
    assert planned("--set", "planning.method=none", "--method", "exact")["method"] == "exact"
    loose = planned("--set", "planning.tolerance=0.2")
    assert best["gap"] < 1e-6 < loose["gap"] < 0.2
    blocks = planned("--set", "cell.subcarrier_spacing_hz=30000")
    width = 12 * 30_000
    assert all(client["bandwidth_hz"] % width == 0 for client in blocks["clients"])
    assert blocks["objective_s"] > best["objective_s"]
    scenario = load_scenario("demo", ["planning.method=random"])
    drawn = plan_round(scenario, situation_of_scenario(scenario, 2)).plan
    shown = planned("--method", "random", "--round", "2")
    assert shown["objective_s"] == pytest.approx(drawn.objective_s)


def test_knobs_are_refused_with_a_method_that_turns_none(airtune) -> None:
    for method in ("bcd", "none", "bandwidth-only"):
        status, _, said = airtune("demo", "--set", "planning.knobs=all", "--method", method)
        assert status == 2
        assert f"planning.knobs with planning.method = '{method}'" in said
    assert airtune("demo", "--set", "planning.knobs=all", "--method", "bcd-knobs")[0] == 0
