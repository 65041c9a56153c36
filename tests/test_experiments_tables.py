"""The tables of the committed rows, and the aims: what is counted, and what may be said of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest

from airtune.study.results import Result
from scripts import script

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
tables = script(EXPERIMENTS / "tables.py")
aims = script(EXPERIMENTS / "aims.py")
pairs = script(EXPERIMENTS / "pairs.py")


def made(
    method: str,
    losses: Sequence[float],
    *,
    round_s: float = 10.0,
    bits: float = 8.0,
    seed: int = 0,
    worst: float = 2.0,
    status: str = "finished",
) -> Result:
    """A run with these losses, the first before training, of rounds that are alike."""
    count = range(len(losses))
    return Result(
        method=method,
        kind="baseline" if method == "fedit" else "joint",
        seed=seed,
        point=(),
        key=f"{method}-{seed}",
        status=status,
        error=None if status == "finished" else "its last loss is no finite number",
        loss=tuple(losses),
        elapsed_s=tuple(round_s * k for k in count),
        uplink_bits=tuple(bits * k for k in count),
        downlink_bits=tuple(0.0 for _ in count),
        flops=tuple(0.0 for _ in count),
        metrics={"worst_client_loss": worst, "accuracy": 0.5 if status == "finished" else 0.0},
    )


def by_name(table: str) -> dict[str, list[str]]:
    """The cells of a table's lines by their method."""
    lines = [line for line in table.splitlines() if "`" in line]
    return {line.split("`")[1]: [c.strip() for c in line.split("|")[1:-1]] for line in lines}


def test_time_and_bits_are_those_to_the_other_ones_final_loss() -> None:
    results = [
        made("fedit", [3.0, 2.0, 1.0]),
        # Reaches 1.0 in its third round of 2 s and 1 bit.
        made("heard", [3.0, 1.5, 1.2, 0.9, 0.8], round_s=2.0, bits=1.0, worst=2.5),
        made("bcd", [3.0, 2.0, 1.1], round_s=5.0),
    ]
    cells = by_name(tables.table(results))
    assert cells["heard"] == [
        "`heard`", "0", "4", "0.800", "-0.200", "+0.500", "0.50", "0.400", "0.300", "0.188",
    ]  # fmt: skip
    assert cells["bcd"][4:8] == ["+0.100", "+0.000", "0.50", "0.500"]
    assert cells["bcd"][8:] == ["not reached", "not reached"]
    assert cells["fedit"][4] == "+0.000"
    short = by_name(tables.short_table(results))
    assert list(short) == ["fedit", "bcd", "heard"]
    assert short["heard"][2:] == ["0", "0.800", "-0.200", "+0.500", "0.300", "0.188"]
    front = tables.front_table({"memory": results[:2], "clinc150": results}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in front]
    assert [line[:2] for line in cells] == [
        ["memory binds", "`fedit`"], ["memory binds", "`heard`"],
        ["links bind", "`fedit`"], ["links bind", "`bcd`"], ["links bind", "`heard`"],
    ]  # fmt: skip
    assert cells[1][3:] == ["0", "0.800", "-0.200", "0.50", "–"]
    assert cells[4][3:] == ["0", "0.800", "-0.200", "0.50", "0.300"]


def ends(lasts: Sequence[float], round_s: float = 2.0) -> list[Result]:
    """FedIT, which ends at 1.0 after 20 s, and a method with two rounds, a seed for each end."""
    return [
        one
        for seed, last in enumerate(lasts)
        for one in (
            made("fedit", [3.0, 2.0, 1.0], seed=seed),
            made("heard", [3.0, last, last], seed=seed, round_s=round_s, worst=1.0 + seed),
        )
    ]


def judged(results: Sequence[Result], measure: str, limit: float) -> tuple[str, str]:
    """What was measured and whether it is within the limit."""
    aim = aims.Aim("clinc150", "heard", "fedit", measure, limit)
    found = aims.measured(results, aim)
    return found.text, aims.verdict(found, limit)


def test_an_aim_is_judged_by_its_interval() -> None:
    results = ends([0.90, 0.91, 0.89])
    # Its first round, 2 s, has FedIT's final loss: 0.1 of 20 s on every seed.
    assert judged(results, "time", 0.15) == ("0.100 [0.100, 0.100]", "yes")
    assert judged(results, "time", 0.05)[1] == "no"
    assert judged(results, "loss", -0.05)[1] == "yes"
    assert judged(results, "loss", -0.09)[1] == "in mean, not by the interval"
    assert judged(results, "loss", -0.11)[1] == "not in mean; the interval holds it"
    # -1, 0, +1 about the other's 2.0.
    assert judged(results, "worst client", 0.0)[1] == "in mean, not by the interval"
    assert judged(ends([0.9]), "time", 0.15) == ("0.100", "one seed: within it")
    assert judged(ends([0.9]), "time", 0.05) == ("0.100", "one seed: missed")
    assert judged(ends([1.1]), "loss", 0.05) == ("+0.100", "one seed: missed")
    assert aims.verdict(None, 1.0) == "–"
    missing = aims.Aim("clinc150", "all-floor", "fedit", "time", 0.15)
    assert aims.measured(results, missing) is None


def test_the_lowest_loss_is_one_after_training_began() -> None:
    results = [
        made("fedit", [0.1, 2.0, 0.7, 1.5]),  # it begins below all that it ends with
        made("heard", [0.1, 0.4, 0.9]),
    ]
    assert judged(results, "loss", 0.0) == ("-0.600", "one seed: within it")
    assert judged(results, "loss against the lowest", 0.0) == ("+0.200", "one seed: missed")


def test_a_run_that_ended_above_the_target_says_only_what_it_was_followed_for() -> None:
    # One seed of five ends above the target, after 4 s of FedIT's 20 s: more than 0.2.
    most = ends([0.9, 0.9, 0.9, 0.9, 1.1])
    reached = "reached on 4 of 5; median at most 0.100"
    assert judged(most, "time", 0.15) == (reached, "within the aim on 4 of 5, no interval")
    assert judged(most, "time", 0.05) == (reached, "within the aim on 0 of 5, no interval")
    # With 0.6 as the aim it could still have been within it.
    assert judged(most, "time", 0.6) == (reached, "not followed far enough")
    none = ends([1.1] * 5)
    assert judged(none, "time", 0.6) == ("reached on 0 of 5", "not followed far enough")
    assert judged(none, "time", 0.15)[1] == "within the aim on 0 of 5, no interval"
    assert judged(ends([1.1]), "time", 0.15) == ("not reached", "one seed: missed")
    assert judged(ends([1.1]), "time", 0.6) == ("not reached", "one seed: open")
    # From six seeds on the median has an interval.
    assert judged(ends([1.1] * 6), "time", 0.15) == ("reached on 0 of 6", "no")
    assert judged(ends([1.1] * 6), "time", 0.2 + 1e-9)[1] == "not followed far enough"
    many = "reached on 8 of 9; median at most 0.100 [0.100, 0.100]"
    assert judged(ends([0.9] * 8 + [1.1]), "time", 0.15) == (many, "yes")
    assert judged(ends([0.9] * 5 + [1.1]), "time", 0.15)[1] == "in median, not by the interval"
    few = ends([0.9] + [1.1] * 5)
    assert judged(few, "time", 0.15)[1] == "not in median; the interval holds it"


def test_runs_that_diverged_are_shown_and_no_aim_is_judged_without_them() -> None:
    results = [
        *ends([0.9, 0.9, 0.9]),
        made("fedit", [3.0, 2.0, 1.0], seed=3),
        made("heard", [3.0, math.nan], seed=3, round_s=50.0, worst=math.nan, status="diverged"),
    ]
    cells = by_name(tables.table(results))["heard"]
    assert cells[1] == "0–2 (diverged: 3)"
    assert cells[3:5] == ["0.900", "-0.100 [-0.100, -0.100]"]
    assert cells[5] == "+0.000 [-2.484, +2.484]"  # -1, 0, +1: Student's t of 4.303
    assert cells[6:8] == ["0.50", "0.200 [0.200, 0.200]"]
    for measure in ("time", "uplink", "loss", "worst client"):
        assert judged(results, measure, 5.0)[1] == "not judged: 1 of the pairs diverged"
    both = pairs.pairs_of(results, "heard", "fedit")
    assert pairs.totals(both, "elapsed_s").estimate.lost == 1
    alone = results[-2:]
    assert judged(alone, "time", 1.0) == ("–", "not judged: 1 of the pairs diverged")
    assert by_name(tables.table(alone))["heard"][1:5] == ["– (diverged: 3)", "1", "–", "–"]


def test_a_table_names_its_seeds() -> None:
    results = [made("fedit", [3.0, 1.0], seed=seed) for seed in (12, 13, 14, 16)]
    assert by_name(tables.table(results))["fedit"][1] == "12–14, 16"


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_intervals_in_the_text_are_those_of_the_rows(document: Path) -> None:
    prose = re.sub(r"^\|.*\n", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    number = r"([-+]?\d+\.\d+)"
    said = re.findall(rf"{number}\s\[{number},\s{number}\]", prose)
    assert len(said) > 3
    known = [
        (made.estimate.value, made.estimate.low, made.estimate.high)
        for study in ("clinc150", "memory", "few-texts")
        for made in compared(pairs.results_of(study))
    ]
    known += [(-value, -high, -low) for value, low, high in known]  # "lower by"
    for texts in said:
        half = [0.501 * 10.0 ** -len(text.partition(".")[2]) for text in texts]
        assert any(
            all(
                abs(float(text) - value) <= h
                for text, value, h in zip(texts, of, half, strict=True)
            )
            for of in known
        ), texts


def compared(results: Sequence[Result]) -> list[pairs.Measured]:
    """Every method of a study against every other one, by all measures."""
    methods = dict.fromkeys(one.method for one in results)
    both = [pairs.pairs_of(results, *names) for names in permutations(methods, 2)]
    return [measure(one) for one in both if one.usable for measure in pairs.MEASURES.values()]


def test_pairs_are_printed_for_each_point(capsys: pytest.CaptureFixture[str]) -> None:
    pairs.main(["memory", "heard", "fedit"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(pairs.MEASURES)
    assert lines[1] == f"{'loss against the lowest':24} -1.098 [-1.817, -0.379]   seeds 12–16"
    pairs.main(["gemma", "fedit", "fedit"])
    assert capsys.readouterr().out.startswith("cell = links bind:\nloss  ")
    with pytest.raises(SystemExit):
        pairs.main(["memory", "fedavg", "fedit"])
    assert "'memory' has no rows of 'fedavg'; it has fedit, " in capsys.readouterr().err
