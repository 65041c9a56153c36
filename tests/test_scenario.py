"""The scenario file: what is accepted, and one clear line for what is not."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.scenario import Scenario, builtin_scenarios, load_scenario, scenario_from_dict
from airtune.scenario.overrides import absolute_override, apply_override


def refusal(*overrides: str, source: str = "tiny") -> str:
    with pytest.raises(InputError) as caught:
        load_scenario(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(builtin_scenarios()))
def test_builtin_scenarios_are_valid_and_named_after_their_file(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.description


def test_demo_has_eight_devices_of_at_least_three_kinds() -> None:
    scenario = load_scenario("demo")
    assert len(scenario.client_devices) == 8
    assert len({device.profile for device in scenario.client_devices}) >= 3


def test_clients_are_named_after_their_profile_and_counted_within_it() -> None:
    names = load_scenario("tiny").client_names
    assert names == (
        "jetson-orin-nano-1",
        "jetson-orin-nano-2",
        "raspberry-pi-5-1",
        "intel-n100-1",
    )


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("cell.radius=3", "cell.radius", "radius_m"),
        ("rounds='six'", "rounds", "integer"),
        ("rounds=1.5", "rounds", "integer"),
        ("rounds=true", "rounds", "integer"),
        ("rounds=0", "rounds", "greater than or equal to 1"),
        ("pruning.max_pruning=1.0", "pruning.max_pruning", "less than 1"),
        ("pruning.max_pruning=-0.1", "pruning.max_pruning", "greater than or equal to 0"),
        ("cell.uplink_bandwidth_hz=0", "cell.uplink_bandwidth_hz", "greater than 0"),
        ("cell.uplink_bandwidth_hz=nan", "cell.uplink_bandwidth_hz", "finite"),
        ("cell.path_loss='tdl'", "cell.path_loss", "'umi', 'uma' or 'classic'"),
        ("devices=[]", "devices", "at least one"),
        ("devices.0.power_dbm='much'", "devices.0.power_dbm", "number"),
        ("devices.0.power_dbm=inf", "devices.0.power_dbm", "finite"),
        ("devices.0.utilisation=-1", "devices.0.utilisation", "greater than 0"),
        ("training.learning_rate=-1e-3", "training.learning_rate", "greater than 0"),
        ("task.name='poetry'", "task.name", "gsm-symbolic"),
        ("cell.min_distance_m=500", "cell", "below radius_m = 200"),
        ("task.train_examples=8", "task.train_examples = 8", "need 32"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("name='../escape'", "name", "pattern"),
    ],
)
def test_impossible_values_name_the_key_and_what_is_allowed(
    override: str, key: str, allowed: str
) -> None:
    message = refusal(override)
    assert key in message
    assert allowed in message


def test_unknown_key_suggests_the_nearest() -> None:
    assert "did you mean 'batch_size'?" in refusal("training.batchsize=3")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rounds", "key.path=value"),
        ("devices.9.count=1", "not an index below 3"),
        ("rounds.x=1", "is not a table"),
        ("=3", "key.path=value"),
    ],
)
def test_overrides_that_cannot_be_applied(override: str, complaint: str) -> None:
    assert complaint in refusal(override)


def test_override_takes_toml_values_and_bare_words() -> None:
    scenario = load_scenario("tiny", ["planning.method=bcd", "rounds=7", "cell.gap_db=2"])
    assert (scenario.planning.method, scenario.rounds, scenario.cell.gap_db) == ("bcd", 7, 2.0)


def test_missing_file_names_the_builtin_ones(tmp_path: Path) -> None:
    message = refusal(source=str(tmp_path / "absent.toml"))
    assert "absent.toml" in message
    assert "demo, tiny" in message


def test_text_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = 'x'\nrounds == 3\n")
    message = refusal(source=str(path))
    assert "broken.toml" in message
    assert "line 2" in message


def test_paths_are_taken_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}")
    text = builtin_scenarios()["tiny"].replace('name = "sums"', 'name = "prompt-answer"')
    text = text.replace("max_tokens = 48", 'max_tokens = 48\nsource = "data.jsonl"')
    (tmp_path / "mine.toml").write_text(text)
    scenario = load_scenario(tmp_path / "mine.toml")
    assert scenario.task.source == str(tmp_path / "data.jsonl")


@pytest.mark.parametrize("name", sorted(builtin_scenarios()))
def test_a_scenario_survives_the_way_through_the_record(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario_from_dict(scenario.model_dump(mode="json")) == scenario


def test_every_key_of_a_builtin_file_is_one_the_schema_has() -> None:
    values = tomllib.loads(builtin_scenarios()["demo"])
    assert set(values) <= set(Scenario.model_fields)


def test_fitting_kappa_needs_something_to_begin_from_and_all_clients() -> None:
    with pytest.raises(InputError, match=r"fit_kappa needs planning\.kappa above 0"):
        load_scenario("tiny", ["planning.fit_kappa=true", "planning.kappa=0"])
    with pytest.raises(
        InputError, match=r"fit_kappa is allowed with participation\.rule = 'all' only"
    ):
        load_scenario("tiny", ["planning.fit_kappa=true", "participation.rule=partial"])


def test_shared_calibration_text_counts_among_the_examples_needed() -> None:
    settings = ["pruning.calibration=shared", "pruning.calibration_examples=250"]
    with pytest.raises(InputError, match=r"pruning\.calibration_examples \(shared\)"):
        load_scenario("tiny", settings)


def test_an_override_is_made_to_mean_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside, away = (tmp_path / name for name in ("hé\U0001f600re", "beside", "away"))
    for folder in (here, beside, away, here / "tiny", here / "own"):
        folder.mkdir()
    for file in ("a.jsonl", "t.csv", "p.json", "own/config.json", "mine.py"):
        (here / file).write_text("{}")
    (beside / "b.jsonl").touch()
    monkeypatch.chdir(here)
    for override, key, value in (
        ("task.source=a.jsonl", "task.source", str(here / "a.jsonl")),
        ("model.id=own", "model.id", str(here / "own")),
        ("devices.0.uplink_trace=t.csv#up", "devices.0.uplink_trace", f"{here / 't.csv'}#up"),
        (
            'devices=[{profile="p.json", count=2, only_labels=["x"]}]',
            "devices",
            [{"profile": str(here / "p.json"), "count": 2, "only_labels": ["x"]}],
        ),
        ('plugins=["mine.py", "module"]', "plugins", [str(here / "mine.py"), "module"]),
    ):
        values: dict[str, Any] = {"devices": [{}]}
        with monkeypatch.context() as elsewhere:
            changed = absolute_override(override, beside)
            elsewhere.chdir(away)
            apply_override(values, changed)
        found: Any = values
        for part in key.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        assert found == value, changed
    for same in ("task.source=b.jsonl", "model.id=tiny", "rounds=2", f"task.source={'x' * 999}"):
        assert absolute_override(same, beside) == same
    with pytest.raises(InputError, match=r"write key\.path=value"):
        absolute_override("rounds", None)
