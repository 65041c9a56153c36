"""Uploads that are lost: how often, what they cost, and with what probability they arrive."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.assignment import Assignment, Mode, PlannedTimes
from airtune.channel import ChannelState
from airtune.channel.outage import backed_off, scaled, success_probability
from airtune.channel.rate import rate_of_band
from airtune.planning.inputs import Situation, situation_of_scenario
from airtune.record.schema import OK
from airtune.rounds import run
from airtune.rounds.losses import Air, Upload, air_of_uploads, upload
from airtune.scenario import Scenario, load_scenario

DRAWS = 10_000
NEAR = 4 * 0.5 / math.sqrt(DRAWS)
BAND_HZ, BITS = 1e5, 4e5
SNR_HZ = np.array([2e5, 5e6])
KNOWN = ChannelState(SNR_HZ, np.full(2, np.inf), np.full(2, 1e6))


def scenario(*settings: str) -> Scenario:
    return load_scenario("tiny", list(settings))


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def told(rate_bps: float, place: int = 0) -> Assignment:
    times = PlannedTimes(downlink_s=0.5, compute_s=1.0, upload_s=BITS / rate_bps, round_s=9.0)
    return Assignment(place, Mode(1, 4, 16), 0.0, BAND_HZ, rate_bps, 1e6, 1e5, times)


def planned_bps(asked: Scenario, known: ChannelState = KNOWN, place: int = 0) -> float:
    with_margin = backed_off(asked.cell, known)
    return float(
        rate_of_band(BAND_HZ, with_margin.snr_hz[place], with_margin.max_spectral_efficiency[place])
    )


def uploads(
    asked: Scenario,
    known: ChannelState = KNOWN,
    *,
    place: int = 0,
    deadline_s: float | None = None,
    rate_bps: float | None = None,
) -> list[Upload]:
    """Draw one client's upload many times."""
    rng = np.random.default_rng(3)
    rate = planned_bps(asked, known, place) if rate_bps is None else rate_bps
    found = []
    for _ in range(DRAWS):
        real = scaled(known, asked.cell.csi_error_db * rng.standard_normal(2))
        chance = rng.random(2) < asked.cell.outage_probability
        air = Air(known, real, chance)
        found.append(upload(asked, air, place, told(rate, place), BITS, 1.0, deadline_s))
    return found


def lost_share(found: list[Upload]) -> float:
    return sum(one.status != OK for one in found) / DRAWS


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("error_db", "margin_db"), [(2.0, 0.0), (2.0, 3.0), (6.0, 3.0)])
def test_outages_under_a_gaussian_error_in_db_are_as_frequent_as_its_tail(
    error_db: float, margin_db: float, place: int
) -> None:
    """Q(m/σ), whatever the SNR and the band; half without a margin."""
    asked = scenario(f"cell.csi_error_db={error_db}", f"cell.csi_margin_db={margin_db}")
    found = uploads(asked, place=place)
    outage = phi(-margin_db / error_db)
    assert lost_share(found) == pytest.approx(outage, abs=NEAR)
    assert {round(one.success, 12) for one in found} == {round(1 - outage, 12)}
    # And what arrives, weighed by 1/q, counts once on average.
    weights = [1 / one.success if one.status == OK else 0.0 for one in found]
    assert np.mean(weights) == pytest.approx(1.0, abs=NEAR / (1 - outage))


def test_a_capped_rate_has_the_slack_above_its_cap() -> None:
    """64-QAM at 20 dB more than it needs: lost only where 20 dB and more are missing."""
    cap = 2.0
    capped = ChannelState(SNR_HZ, np.full(2, cap), np.full(2, 1e6))
    needed_hz = BAND_HZ * (2**cap - 1)
    slack_db = 10 * math.log10(SNR_HZ[1] / needed_hz)
    asked = scenario("cell.csi_error_db=10")
    found = uploads(asked, capped, place=1)
    assert lost_share(found) == pytest.approx(phi(-slack_db / 10), abs=NEAR)
    assert found[0].success == pytest.approx(phi(slack_db / 10), rel=1e-12)
    # More than the best modulation carries never arrives.
    assert success_probability(asked.cell, capped, 1, BAND_HZ, 2.1 * BAND_HZ) == 0.0


def test_what_computes_beyond_the_deadline_arrives_with_probability_0() -> None:
    """No rate is enough then, with a cap and without one."""
    asked = scenario("cell.csi_error_db=3")
    assert success_probability(asked.cell, KNOWN, 0, BAND_HZ, math.inf) == 0.0
    recorded = ChannelState(SNR_HZ, np.full(2, 3.0), np.full(2, 1e6), np.zeros(2, dtype=bool))
    assert success_probability(asked.cell, recorded, 0, BAND_HZ, math.inf) == 0.0
    late = Air(KNOWN, KNOWN, np.zeros(2, dtype=bool))
    found = upload(asked, late, 0, told(planned_bps(asked)), BITS, 1.0, 1.2)
    assert found.success == 0.0
    assert found.status != OK


def test_a_recorded_rate_has_its_own_error() -> None:
    """Where a trace says the rate, the error and the margin are the rate's, in dB."""
    recorded = ChannelState(
        np.full(2, 1e23), np.array([3.0, 3.0]), np.full(2, 1e6), np.zeros(2, dtype=bool)
    )
    asked = scenario("cell.csi_error_db=2", "cell.csi_margin_db=1")
    assert planned_bps(asked, recorded) == pytest.approx(3 * BAND_HZ * 10**-0.1)
    found = uploads(asked, recorded)
    assert lost_share(found) == pytest.approx(phi(-0.5), abs=NEAR)
    assert found[0].success == pytest.approx(phi(0.5))


def test_a_fixed_probability_is_met_and_multiplies() -> None:
    assert lost_share(uploads(scenario("cell.outage_probability=0.2"))) == pytest.approx(
        0.2, abs=NEAR
    )
    both = scenario("cell.outage_probability=0.2", "cell.csi_error_db=3", "cell.csi_margin_db=3")
    found = uploads(both)
    assert found[0].success == pytest.approx(0.8 * phi(1.0))
    assert lost_share(found) == pytest.approx(1 - 0.8 * phi(1.0), abs=NEAR)
    assert {one.status.split(":")[1][:4] for one in found if one.status != OK} == {" out", " the"}


def test_a_lost_upload_is_sent_and_billed_in_full() -> None:
    """The device learns too late that the channel does not carry what was planned."""
    asked = scenario("cell.csi_error_db=3")
    rate = planned_bps(asked)
    weak = Air(KNOWN, scaled(KNOWN, np.full(2, -3.0)), np.zeros(2, dtype=bool))
    lost = upload(asked, weak, 0, told(rate), BITS, 1.0, None)
    assert lost.status.startswith("lost: the channel carried ")
    assert "were planned" in lost.status
    assert (lost.rate_bps, lost.upload_s, lost.sent) == (rate, BITS / rate, 1.0)
    strong = Air(KNOWN, scaled(KNOWN, np.full(2, 3.0)), np.zeros(2, dtype=bool))
    there = upload(asked, strong, 0, told(rate), BITS, 1.0, None)
    assert (there.status, there.rate_bps, there.upload_s) == (OK, rate, BITS / rate)


def test_a_deadline_lets_a_slower_upload_arrive_and_cuts_off_a_late_one() -> None:
    asked = scenario("cell.csi_error_db=4", "participation.deadline_slack=2")
    rate = planned_bps(asked)
    on_time_s = 0.5 + 1.0 + BITS / rate
    deadline_s = 2 * on_time_s
    for by_db in (-1.0, 0.0, 2.0):
        real = scaled(KNOWN, np.full(2, by_db))
        air = Air(KNOWN, real, np.zeros(2, dtype=bool))
        carried = float(rate_of_band(BAND_HZ, real.snr_hz[0]))
        one = upload(asked, air, 0, told(rate), BITS, 1.0, deadline_s)
        assert one.status == OK
        assert (one.rate_bps, one.sent) == (pytest.approx(carried), 1.0)
        assert one.upload_s == pytest.approx(BITS / carried)
    real = scaled(KNOWN, np.full(2, -9.0))
    carried = float(rate_of_band(BAND_HZ, real.snr_hz[0]))
    late = upload(
        asked, Air(KNOWN, real, np.zeros(2, dtype=bool)), 0, told(rate), BITS, 1.0, deadline_s
    )
    assert late.status == (
        f"lost: late: {1.5 + BITS / carried:.4g} s, the deadline was {deadline_s:.4g} s"
    )
    assert 1.5 + late.upload_s == pytest.approx(deadline_s)
    assert late.sent == pytest.approx(late.upload_s * carried / BITS)
    # A device that is not even done with computing sends nothing.
    slow = upload(
        asked, Air(KNOWN, real, np.zeros(2, dtype=bool)), 0, told(rate), BITS, 1e3, deadline_s
    )
    assert (slow.upload_s, slow.sent, slow.success) == (0.0, 0.0, 0.0)
    assert 0.5 + slow.compute_s == pytest.approx(deadline_s)


def test_a_deadlines_probability_is_that_of_the_rate_it_leaves_time_for() -> None:
    asked = scenario("cell.csi_error_db=5", "participation.deadline_slack=1.5")
    rate = planned_bps(asked)
    deadline_s = 1.5 * (1.5 + BITS / rate)
    found = uploads(asked, deadline_s=deadline_s)
    needed = BITS / (deadline_s - 1.5)
    needed_hz = BAND_HZ * (2 ** (needed / BAND_HZ) - 1)
    arrives = phi(10 * math.log10(SNR_HZ[0] / needed_hz) / 5)
    assert found[0].success == pytest.approx(arrives, rel=1e-9)
    assert 0.5 < arrives < 0.95
    assert lost_share(found) == pytest.approx(1 - arrives, abs=NEAR)


def test_without_an_error_nothing_is_lost_and_the_margin_only_slows() -> None:
    asked = scenario("cell.csi_margin_db=3")
    rate = planned_bps(asked)
    assert rate == pytest.approx(BAND_HZ * math.log2(1 + SNR_HZ[0] / BAND_HZ / 10**0.3))
    air = Air(KNOWN, KNOWN, np.zeros(2, dtype=bool))
    one = upload(asked, air, 0, told(rate), BITS, 1.0, None)
    assert (one.status, one.success) == (OK, 1.0)


def test_the_snr_of_the_record_is_that_of_the_air_whatever_the_margin(tmp_path: Path) -> None:
    settings = ["rounds=1", "planning.method=none"]
    plain, wary = (
        run(load_scenario("tiny", [*settings, *more]), out=tmp_path / str(len(more))).rounds[0]
        for more in ([], ["cell.csi_margin_db=3"])
    )
    assert [one.snr_db for one in wary.clients] == [one.snr_db for one in plain.clients]
    assert wary.round_latency_s > plain.round_latency_s


def test_the_margin_is_in_the_plan_and_the_error_is_the_clients_own() -> None:
    """A client's error does not depend on who else is in the cohort, nor on the method."""
    asked = scenario("cell.csi_error_db=3", "cell.csi_margin_db=2", "cell.outage_probability=0.5")
    at = situation_of_scenario(asked, 2)
    assert at.air is not None
    np.testing.assert_allclose(at.link.air.snr_hz, at.air.snr_hz * 10**-0.2)
    np.testing.assert_array_equal(at.link.air.downlink_rate_bps, at.air.downlink_rate_bps)
    everyone = air_of_uploads(asked, at)
    cohort = (1, 3)
    own = air_of_uploads(asked, _only(at, cohort))
    np.testing.assert_array_equal(own.real.snr_hz, everyone.real.snr_hz[list(cohort)])
    np.testing.assert_array_equal(own.outage, everyone.outage[list(cohort)])
    assert (everyone.real.snr_hz != everyone.known.snr_hz).all()
    other = air_of_uploads(asked, replace(at, round=3))
    assert (other.real.snr_hz != everyone.real.snr_hz).all()


def _only(at: Situation, cohort: tuple[int, ...]) -> Situation:
    assert at.air is not None
    changed: dict[str, Any] = {"cohort": cohort, "air": at.air.of(cohort)}
    return replace(at, **changed)
