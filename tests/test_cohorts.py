"""The cohort of a round: how it is drawn, with which probabilities, and from whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.errors import InputError, RunError
from airtune.planning.availability import Availability, read_availability
from airtune.planning.cohorts import (
    Cohort,
    DrawMemory,
    draw_cohort,
    inclusion_by_size,
    systematic,
)
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.round_plan import plan_round
from airtune.scenario import Scenario, load_scenario

DRAWS = 10_000
SIZES = np.array([8.0, 8.0, 16.0, 16.0, 32.0, 100.0])
EVEN = np.ones(6)


def scenario(*settings: str, clients: int = 6) -> Scenario:
    devices = f"devices=[{{profile='jetson-orin-nano',count={clients},utilisation=1e-6}}]"
    return load_scenario("tiny", [devices, *settings])


def drawn(
    asked: Scenario,
    round: int,
    *,
    time_s: float = 0.0,
    rate_bps: np.ndarray = EVEN,
    availability: Availability | None = None,
    memory: DrawMemory | None = None,
) -> Cohort:
    return draw_cohort(
        asked,
        round=round,
        time_s=time_s,
        rate_bps=rate_bps,
        examples=SIZES,
        availability=availability,
        memory=memory or DrawMemory(),
    )


def frequencies(asked: Scenario, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """How often each client is drawn, and the mean of 1/π over the draws it is in."""
    counts, inverse = np.zeros(6), np.zeros(6)
    for round in range(1, DRAWS + 1):
        cohort = drawn(asked, round, **given)
        places = list(cohort.clients)
        assert len(set(places)) == 2
        counts[places] += 1
        inverse[places] += 1.0 / cohort.inclusion  # type: ignore[operator]
    return counts / DRAWS, inverse / DRAWS


# Four standard deviations of a frequency over so many draws.
NEAR = 4 * 0.5 / np.sqrt(DRAWS)


def test_uniform_draws_include_each_client_alike() -> None:
    often, _ = frequencies(scenario("participation.cohort=2"))
    np.testing.assert_allclose(often, 2 / 6, atol=NEAR)


def test_draws_by_size_include_clients_in_proportion_and_the_largest_always() -> None:
    """8, 8, 16, 16, 32, 100 and two of them: the last is certain, the others share one place."""
    known = np.array([0.1, 0.1, 0.2, 0.2, 0.4, 1.0])
    np.testing.assert_allclose(inclusion_by_size(SIZES, 2), known)
    often, inverse = frequencies(
        scenario("participation.cohort=2", "participation.cohort_by=data-size")
    )
    np.testing.assert_allclose(often, known, atol=NEAR)
    # So that what weighs 1/π counts once on average.
    np.testing.assert_allclose(inverse, 1.0, atol=4 / np.sqrt(0.1 * DRAWS))


def test_systematic_draws_give_any_probabilities_exactly() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 3, 7):
        probability = inclusion_by_size(rng.exponential(size=20), count)
        assert probability.sum() == pytest.approx(count)
        counts = np.zeros(20)
        for _ in range(DRAWS):
            chosen = systematic(probability, rng.random(20), float(rng.random()))
            assert len(set(chosen.tolist())) == count
            counts[chosen] += 1
        np.testing.assert_allclose(counts / DRAWS, probability, atol=NEAR)


def test_turns_come_to_everyone_before_anyone_has_a_second() -> None:
    asked = scenario("participation.cohort=2", "participation.cohort_by=round-robin")
    memory, seen = DrawMemory(), []
    for round in range(1, 7):
        cohort = drawn(asked, round, memory=memory)
        memory, seen = cohort.memory, [*seen, *cohort.clients]
        np.testing.assert_allclose(cohort.inclusion, 2 / 6)
    assert sorted(seen[:6]) == list(range(6))
    assert seen[:6] == seen[6:]
    # Four at a time: whoever is left over begins the next round.
    four = scenario("participation.cohort=4", "participation.cohort_by=round-robin")
    first = drawn(four, 1)
    second = drawn(four, 2, memory=first.memory)
    assert set(range(6)) - set(first.clients) < set(second.clients)
    orders = {drawn(asked.model_copy(update={"seed": seed}), 1).clients for seed in range(20)}
    assert len(orders) > 5


def test_by_channel_the_best_links_of_the_round() -> None:
    asked = scenario("participation.cohort=2", "participation.cohort_by=channel")
    cohort = drawn(asked, 1, rate_bps=np.array([3.0, 9.0, 1.0, 4.0, 2.0, 6.0]))
    assert cohort.clients == (1, 5)
    assert cohort.inclusion is None


def test_proportional_fairness_serves_a_weak_link_when_it_is_at_its_own_best() -> None:
    """Under equal fading every client is served alike, however far it is from the others."""
    asked = scenario("participation.cohort=2", "participation.cohort_by=proportional-fair")
    best = scenario("participation.cohort=2", "participation.cohort_by=channel")
    rng, memory = np.random.default_rng(1), DrawMemory()
    scale = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    counts, unfair, gain = np.zeros(6), np.zeros(6), []
    for round in range(1, 3001):
        fading = rng.exponential(size=6)
        cohort = drawn(asked, round, rate_bps=scale * fading, memory=memory)
        memory = cohort.memory
        counts[list(cohort.clients)] += 1
        unfair[list(drawn(best, round, rate_bps=scale * fading).clients)] += 1
        gain.append(fading[list(cohort.clients)].mean())
    np.testing.assert_allclose(counts / 3000, 2 / 6, atol=0.05)
    assert unfair[5] > 20 * unfair[0]
    assert np.mean(gain) > 1.3  # and it is served above its mean


def test_a_mean_rate_moves_towards_what_was_served_by_hand() -> None:
    """Two of six, so a window of 3: T = r/3 at first, then T + (r [served] - T)/3."""
    asked = scenario("participation.cohort=2", "participation.cohort_by=proportional-fair")
    rate = np.array([3.0, 6.0, 9.0, 12.0, 15.0, 18.0])
    first = drawn(asked, 1, rate_bps=rate)
    served = np.isin(np.arange(6), first.clients)
    mean = rate / 3 + (np.where(served, rate, 0.0) - rate / 3) / 3
    np.testing.assert_allclose(first.memory.mean_rate_bps, mean)
    second = drawn(asked, 2, rate_bps=rate, memory=first.memory)
    assert not set(first.clients) & set(second.clients)


def test_a_share_is_of_all_clients_and_a_whole_number_is_itself() -> None:
    sizes = {
        given: scenario(f"participation.cohort={given}", clients=10).cohort_size
        for given in ("1", "1.0", "0.25", "0.01", "3")
    }
    assert sizes == {"1": 1, "1.0": 10, "0.25": 2, "0.01": 1, "3": 3}
    assert scenario().cohort_size == 6
    assert not scenario().participation.draws


def test_methods_and_absent_clients_do_not_change_a_draw(tmp_path: Path) -> None:
    """The stream is named by the seed and the round; who is away changes no other's number."""
    exact, none = (
        scenario("participation.cohort=2", f"planning.method={method}")
        for method in ("exact", "none")
    )
    cohorts = [drawn(exact, round).clients for round in range(1, 30)]
    assert cohorts == [drawn(none, round).clients for round in range(1, 30)]
    assert len(set(cohorts)) > 8
    away = spans(tmp_path, "\n".join(f"{k},0,100" for k in (1, 2, 3, 4, 5)))
    for round, cohort in enumerate(cohorts, start=1):
        if 5 not in cohort:
            assert drawn(exact, round, availability=away).clients == cohort


# --- availability ------------------------------------------------------------------------------

HEAD = "client,from_s,to_s\n"


def spans(folder: Path, lines: str) -> Availability:
    path = folder / "there.csv"
    path.write_text(HEAD + lines + "\n")
    return read_availability(path, scenario().client_names)


def test_spans_begin_at_their_start_and_are_over_at_their_end(tmp_path: Path) -> None:
    found = spans(tmp_path, "1,0,10\n1,10,20\njetson-orin-nano-2, 5, 15\n\n6,1e3,2e3")
    at = {time: np.flatnonzero(found.at(time)).tolist() for time in (0, 5, 14.9, 15, 20, 1000)}
    assert at == {0: [0], 5: [0, 1], 14.9: [0, 1], 15: [0], 20: [], 1000: [5]}
    assert found.most() == 2
    assert found.never() == 3
    assert found.first_with(1, 0) == 0
    assert found.first_with(2, 0) == 5
    assert found.first_with(2, 7) == 7
    assert found.first_with(1, 20) == 1000
    assert found.first_with(2, 15) is None


def test_a_cohort_is_drawn_from_those_available_with_their_probability(tmp_path: Path) -> None:
    there = spans(tmp_path, "1,0,10\n2,0,10\n3,0,10\n4,0,10\n5,50,60\n6,50,60")
    often, inverse = frequencies(scenario("participation.cohort=2"), availability=there)
    np.testing.assert_allclose(often, [0.5] * 4 + [0, 0], atol=NEAR)
    np.testing.assert_allclose(inverse, [1.0] * 4 + [0, 0], atol=4 / np.sqrt(0.5 * DRAWS))
    by_size = scenario("participation.cohort=2", "participation.cohort_by=data-size")
    often, _ = frequencies(by_size, availability=there)
    np.testing.assert_allclose(often, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 0, 0], atol=NEAR)


def test_too_few_wait_on_the_clock_or_go_on(tmp_path: Path) -> None:
    there = spans(tmp_path, "1,0,10\n2,0,30\n3,20,30\n4,25,30")
    waits = scenario("participation.cohort=3")
    cohort = drawn(waits, 1, time_s=12.0, availability=there)
    assert (cohort.clients, cohort.waited_s) == ((1, 2, 3), 13.0)
    goes_on = scenario(
        "participation.cohort=3", "participation.availability=x", "participation.too_few=fewer"
    )
    cohort = drawn(goes_on, 1, time_s=12.0, availability=there)
    assert (cohort.clients, cohort.waited_s) == ((1,), 0.0)
    np.testing.assert_allclose(cohort.inclusion, 1.0)
    # Nobody at all is waited for in either case.
    later = spans(tmp_path, "1,40,50")
    assert drawn(goes_on, 1, time_s=12.0, availability=later).waited_s == 28.0
    four, gone = scenario("participation.cohort=4"), spans(tmp_path, "1,0,50\n2,0,20")
    with pytest.raises(RunError, match=r"1 clients are available at 26 s.*never again 4 at once"):
        drawn(four, 1, time_s=26.0, availability=gone)


def test_a_turn_passes_over_who_is_away(tmp_path: Path) -> None:
    asked = scenario("participation.cohort=2", "participation.cohort_by=round-robin")
    order = [c for r in range(3) for c in sorted(_turn(asked, r))]
    there = spans(tmp_path, "\n".join(f"{k + 1},0,9" for k in range(6) if k != order[0]))
    cohort = drawn(asked, 1, availability=there)
    assert order[0] not in cohort.clients
    assert cohort.inclusion is None


def _turn(asked: Scenario, turn: int) -> tuple[int, ...]:
    return drawn(asked, 1, memory=DrawMemory(next=2 * turn)).clients


BAD_FILES = {
    "client,from_s\n1,0\n": "line 1: the columns 'client,from_s'; allowed: client,from_s,to_s",
    HEAD: "no client is ever there: the file has no line of a span",
    HEAD + "7,0,1\n": "line 2: no client '7'; allowed: .*-1, .*-4, …, or 1 to 6",
    HEAD + "pi-1,0,1\n": "line 2: no client 'pi-1'",
    HEAD + "1,0\n": "line 2: 2 fields; allowed: client,from_s,to_s",
    HEAD + "1,-1,5\n": "line 2: from_s '-1'; allowed: s on the virtual clock, 0 or more",
    HEAD + "1,0,nan\n": "line 2: to_s 'nan'",
    HEAD + "1,5,5\n": "line 2: to_s '5' must be after from_s '5'",
    HEAD + "1,0,10\n2,0,10\n1,9,12\n": (
        "line 4: the span of jetson-orin-nano-1 from 9 s overlaps that of line 2, which ends at 10"
    ),
    HEAD + '1,0,"10\n': "not CSV",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_malformed_availability_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "there.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=BAD_FILES[text]) as refused:
        read_availability(path, scenario().client_names)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    names = scenario().client_names
    with pytest.raises(
        InputError, match=r"participation.availability '.*' cannot be read: No such"
    ):
        read_availability(tmp_path / "none.csv", names)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_availability(tmp_path / "bytes.csv", names)


# --- what a scenario may say ---------------------------------------------------------------------

REFUSED = {
    ("participation.cohort=7",): "participation.cohort = 7 is more than the 6 clients of devices",
    ("participation.cohort=0",): "0; allowed: a whole number of clients from 1 on, or a share",
    ("participation.cohort=1.5",): "1.5; allowed: a whole number",
    ("participation.cohort=-0.1",): "-0.1; allowed",
    ("participation.cohort=true",): "True; allowed",
    ("participation.cohort=many",): "'many'; allowed",
    ("participation.cohort_by=channel",): "cohort_by = 'channel' has no effect without cohort",
    ("participation.too_few=fewer",): "too_few = 'fewer' has no effect without availability",
    (
        "participation.cohort=2",
        "participation.cohort_by=channel",
        "participation.weights=inclusion",
    ): "no probability of being drawn is known; allowed: uniform, data-size, round-robin",
    ("participation.weights=inclusion", "participation.rule=deadline"): "allowed: all",
    ("participation.weights=inclusion", "planning.knobs=all"): "cannot go with the knob absence",
    ("participation.deadline_slack=0.9",): "deadline_slack = 0.9: must be greater than or equal",
    ("cell.csi_error_db=-1",): "csi_error_db = -1",
    ("cell.outage_probability=1.0",): "outage_probability = 1.0: must be less than 1",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(settings: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=REFUSED[settings]) as refused:
        scenario(*settings)
    assert "\n" not in str(refused.value)


def test_a_cohort_that_is_never_there_is_refused_before_the_run(tmp_path: Path) -> None:
    spans(tmp_path, "1,0,10\n2,5,20\n3,10,20")
    named = f"participation.availability={tmp_path / 'there.csv'}"
    from airtune.rounds.cell import checked_profiles

    with pytest.raises(InputError, match="at most 2 of the 6 clients are available at once"):
        checked_profiles(scenario("participation.cohort=3", named))
    checked_profiles(scenario("participation.cohort=2", named))
    checked_profiles(scenario("participation.cohort=3", named, "participation.too_few=fewer"))


# --- `airtune plan` ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["uniform", "round-robin", "channel", "proportional-fair"])
def test_a_plan_before_the_run_has_the_cohort_of_its_round(by: str) -> None:
    asked = scenario("participation.cohort=2", f"participation.cohort_by={by}")
    everyone = situation_of_scenario(scenario(), 3)
    at = situation_of_scenario(asked, 3)
    assert len(at.cohort) == 2 == at.problem.clients
    np.testing.assert_array_equal(at.link.air.snr_hz, everyone.link.air.snr_hz[list(at.cohort)])
    assert at.problem.names == tuple(asked.client_names[k] for k in at.cohort)
    assert len(plan_round(asked, at).modes) == 2
