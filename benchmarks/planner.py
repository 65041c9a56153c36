"""How fast and how accurate the planner is, beside what a user could call instead.

Everything runs in one process, one after the other, and the answers are compared before the times:

    python benchmarks/planner.py --out benchmarks/results/planner.json        # all of it
    python benchmarks/planner.py --parts scale --clients 10 1000          # one part, chosen sizes

Parts: ``scale`` (the whole joint problem, K = 10 to 1,000,000, with peak memory; each size in a
process of its own), ``solvers`` (the same fixed-deadline problem by CVXPY and SciPy), ``descent``
(how far block coordinate descent stops above the optimum), ``blocks`` (whole resource blocks).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from airtune.channel import numerology
from airtune.planning import PlanningProblem, plan
from airtune.planning.bcd import bandwidth_block
from airtune.planning.optimum.deadline import solve
from airtune.planning.optimum.reduced import reduced
from planner_cell import cell

SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
# A second size shows how the others grow; beyond, they take minutes.
SOLVER_SIZES = (10, 100, 1_000)
REPEATS = 5
# A solver that takes longer is stopped, and what it has by then is what it is compared by.
PATIENCE_S = 120.0
LONG_S = 5.0


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest time of some runs, and the last answer; one run where one is long."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - start)
        if times[-1] > LONG_S:
            break
    return min(times), answer


def peak_bytes() -> int:
    """The process's peak resident memory (Linux); getrusage's would count the parent's too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status: the benchmark needs Linux")


def measure_size(clients: int) -> dict[str, Any]:
    before = peak_bytes()
    problem = cell(clients)
    held = peak_bytes()
    repeats = REPEATS if clients <= 10_000 else 1
    seconds, made = timed(lambda: plan(problem), repeats)
    peak = peak_bytes()
    bcd_s, descent = timed(lambda: plan(problem, "bcd", bound=False), min(repeats, 3))
    return {
        "clients": clients,
        "exact_s": seconds,
        "gap": made.gap,
        "deadlines": made.deadlines,
        "objective_s": made.objective_s,
        "bcd_s": bcd_s,
        "bcd_above": descent.objective_s / made.objective_s - 1,
        "peak_bytes": peak,
        "problem_bytes": held - before,
    }


def scale(sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    for clients in sizes:
        # A process each: peak memory never falls again within one.
        ended = subprocess.run(
            [sys.executable, __file__, "--one-size", str(clients)],
            capture_output=True,
            text=True,
            check=True,
        )
        rows.append(json.loads(ended.stdout))
        print(f"K = {clients}: {rows[-1]['exact_s']:.4g} s, gap {rows[-1]['gap']:.1e}", flush=True)
    return rows


def middle_deadline(problem: PlanningProblem) -> float:
    ends = [
        bandwidth_block(
            problem,
            problem.downlink_s + problem.compute_s(pruning),
            problem.payload_bits(pruning),
        )[0]
        for pruning in (problem.max_pruning, problem.min_pruning)
    ]
    return ends[0] + 0.25 * (ends[1] - ends[0])


def kept_of_band(problem: PlanningProblem, deadline_s: float, band_hz: np.ndarray) -> np.ndarray:
    """X = ((T − d − c0)·r − u0)/(c1·r + u1), unclipped."""
    rate = problem.rate_bps(band_hz)
    left = deadline_s - problem.downlink_s - problem.compute_fixed_s
    return (left * rate - problem.payload_fixed_bits) / (
        problem.compute_full_s * rate + problem.payload_full_bits
    )


def real_loss(
    problem: PlanningProblem, deadline_s: float, band_hz: np.ndarray
) -> tuple[float, float]:
    """Q that somebody's bands really give once they fit the band, and by how much they are late.

    The lateness is the share of a model that a client could not even keep at its max_pruning.
    """
    band = np.maximum(band_hz, 0.0)
    band *= min(1.0, problem.bandwidth_hz / band.sum())
    kept = kept_of_band(problem, deadline_s, band)
    late = float(np.maximum(1 - problem.max_pruning - kept, 0.0).max())
    pruning = np.clip(1 - kept, problem.min_pruning, problem.max_pruning)
    return problem.pruning_loss(pruning), late


def ours(problem: PlanningProblem, deadline_s: float) -> np.ndarray:
    small = reduced(problem)
    return solve(small, deadline_s - small.base).band_hz


def by_cvxpy(problem: PlanningProblem, deadline_s: float, solver: str) -> np.ndarray:
    import cvxpy as cp

    total = problem.bandwidth_hz / problem.clients
    left = deadline_s - problem.downlink_s - problem.compute_fixed_s
    band, kept = cp.Variable(problem.clients), cp.Variable(problem.clients)
    rate = -cp.rel_entr(band, band + problem.snr_hz / total) / np.log(2)
    fixed, full = problem.payload_fixed_bits / total, problem.payload_full_bits / total
    slope = problem.compute_full_s
    spread = fixed + full * left / slope
    need = -full / slope + cp.multiply(spread, cp.inv_pos(left - cp.multiply(slope, kept)))
    task = cp.Problem(
        cp.Minimize(problem.weight @ (1 - kept)),
        [
            need <= rate,
            band >= 0,
            cp.sum(band) <= problem.clients,
            kept >= 1 - problem.max_pruning,
            kept <= 1 - problem.min_pruning,
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task.solve(solver=solver)
    return np.asarray(band.value) * total


def by_scipy(problem: PlanningProblem, deadline_s: float, method: str) -> np.ndarray:
    """Over the bands alone, with gradients; kept = min(g(b), most) by a smooth variable change.

    Variables: kept x, in which the loss is linear and the band of x convex and smooth; the one
    constraint is Σ b(x) <= B, with its gradient (and, for trust-constr, its diagonal Hessian by
    differences of the gradient).
    """
    from scipy import optimize, sparse

    left = deadline_s - problem.downlink_s - problem.compute_fixed_s
    total = problem.bandwidth_hz
    low, high = 1 - problem.max_pruning, 1 - problem.min_pruning
    rate_most = problem.rate_bps(np.full(problem.clients, total))
    reach = kept_of_band(problem, deadline_s, np.full(problem.clients, total))
    high = np.maximum(np.minimum(high, reach - 1e-6), low)

    began = time.perf_counter()
    latest = [low]

    def watch(kept: np.ndarray, *_: Any) -> None:
        latest[0] = np.clip(kept, low, high)
        if time.perf_counter() - began > PATIENCE_S:
            raise StopIteration

    def rate_for(kept: np.ndarray) -> np.ndarray:
        # trust-constr also asks outside the bounds.
        kept = np.clip(kept, low, high)
        need = problem.payload_fixed_bits + problem.payload_full_bits * kept
        return np.minimum(need / (left - problem.compute_full_s * kept), rate_most)

    def band_sum(kept: np.ndarray) -> float:
        return float(problem.band_hz(rate_for(kept)).sum() / total - 1)

    def gradient(kept: np.ndarray) -> np.ndarray:
        room = left - problem.compute_full_s * np.clip(kept, low, high)
        rate = rate_for(kept)
        per_kept = (problem.payload_full_bits + problem.compute_full_s * rate) / room
        snr = problem.snr_hz / problem.band_hz(rate)
        return per_kept * np.log(2) / (np.log1p(snr) - snr / (1 + snr)) / total

    def curvature(kept: np.ndarray, multiplier: np.ndarray) -> Any:
        step = 1e-6
        change = gradient(np.minimum(kept + step, high)) - gradient(kept)
        return sparse.diags(multiplier[0] * change / step)

    common: dict[str, Any] = {
        "fun": lambda x: -float(problem.weight @ x),
        "x0": low.copy(),
        "jac": lambda x: -problem.weight,
        "bounds": optimize.Bounds(low, high),
        "method": method,
        "callback": watch,
    }
    if method == "SLSQP":
        limits: Any = {
            "type": "ineq",
            "fun": lambda x: -band_sum(x),
            "jac": lambda x: -gradient(x),
        }
        options = {"maxiter": 500, "ftol": 1e-12}
    else:
        limits = optimize.NonlinearConstraint(band_sum, -np.inf, 0.0, jac=gradient, hess=curvature)
        common["hess"] = lambda x: sparse.csr_matrix((len(x), len(x)))
        options = {"maxiter": 500, "gtol": 1e-10, "xtol": 1e-10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kept = optimize.minimize(constraints=limits, options=options, **common).x
        except StopIteration:
            kept = latest[0]
    return problem.band_hz(rate_for(kept))


SOLVERS: dict[str, Callable[[PlanningProblem, float], np.ndarray]] = {
    "airtune": ours,
    "CVXPY Clarabel": lambda problem, deadline: by_cvxpy(problem, deadline, "CLARABEL"),
    "CVXPY SCS": lambda problem, deadline: by_cvxpy(problem, deadline, "SCS"),
    "SciPy SLSQP": lambda problem, deadline: by_scipy(problem, deadline, "SLSQP"),
    "SciPy trust-constr": lambda problem, deadline: by_scipy(problem, deadline, "trust-constr"),
}


def solvers(sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    for clients in sizes:
        problem = cell(clients)
        deadline = middle_deadline(problem)
        small = reduced(problem)
        bound = solve(small, deadline - small.base).bound
        for name, work in SOLVERS.items():
            repeats = 20 if name == "airtune" else 3
            try:
                seconds, band = timed(lambda: work(problem, deadline), repeats)  # noqa: B023
                loss, late = real_loss(problem, deadline, band)
            except Exception as error:
                print(f"{name}, K = {clients}: {type(error).__name__}: {error}")
                rows.append({"solver": name, "clients": clients, "failed": type(error).__name__})
                continue
            row = {"solver": name, "clients": clients, "seconds": seconds, "loss": loss,
                   "above_bound": loss - bound, "late": late}  # fmt: skip
            rows.append(row)
            print(
                f"K = {clients}, {name}: {seconds:.4g} s, Q above the bound {loss - bound:.2e}, "
                f"late {late:.1e}",
                flush=True,
            )
    return rows


def descent(count: int = 60) -> list[dict[str, Any]]:
    rows = []
    for clients in (10, 30):
        for seed in range(count):
            problem = cell(clients, seed=seed + 1)
            best = plan(problem)
            rows.append(
                {
                    "clients": clients,
                    "seed": seed + 1,
                    **{
                        method: plan(problem, method, bound=False).objective_s / best.objective_s
                        - 1
                        for method in ("bcd", "bcd-bandwidth-first", "uniform", "pruning-only",
                                       "bandwidth-only", "none")
                    },
                }
            )  # fmt: skip
    for clients in (10, 30):
        for method in ("bcd", "bcd-bandwidth-first", "uniform"):
            found = 100 * np.array([row[method] for row in rows if row["clients"] == clients])
            print(
                f"K = {clients}, {method}: median {np.median(found):.2f} %, "
                f"worst {found.max():.1f} %"
            )
    return rows


def blocks() -> list[dict[str, Any]]:
    rows = []
    for clients, mhz, spacing_khz in ((10, 20, 15), (10, 20, 30), (10, 100, 30), (100, 100, 30)):
        problem = cell(clients, mhz_per_client=mhz / clients)
        count = numerology.resource_blocks(mhz * 1e6, spacing_khz * 1000)
        width = numerology.block_hz(spacing_khz * 1000)
        seconds, made = timed(lambda: plan(problem, block_hz=width, blocks=count), 3)  # noqa: B023
        rows.append({"clients": clients, "channel_mhz": mhz, "spacing_khz": spacing_khz,
                     "blocks": count, "seconds": seconds, "gap": made.gap,
                     "block_loss": made.block_loss})  # fmt: skip
        print(f"{clients} clients, {count} blocks: {seconds:.4g} s, loss {made.block_loss:.2e}")
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The figure of bcd against exact: the share of problems within a distance of the optimum."""
    from matplotlib.figure import Figure

    styles = {"bcd": "C0", "bcd-bandwidth-first": "C1", "uniform": "C2"}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.add_subplot()
    for method, colour in styles.items():
        for clients, line in ((10, "-"), (30, "--")):
            found = np.sort([row[method] for row in rows if row["clients"] == clients])
            above = 100 * np.maximum(found, 1e-6)
            share = 100 * np.arange(1, len(above) + 1) / len(above)
            panel.step(above, share, line, color=colour, label=f"{method}, {clients} clients",
                       where="post")  # fmt: skip
    panel.axvline(1e-4, color="black", lw=1, label="exact: at most 1e-4 %")
    panel.set_xscale("log")
    panel.set_xlabel("above the proven optimum, %")
    panel.set_ylabel("share of problems, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def machine() -> dict[str, Any]:
    import scipy

    found = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
             "numpy": np.__version__, "scipy": scipy.__version__}  # fmt: skip
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            found["cpu"] = line.partition(":")[2].strip()
            break
    try:
        import cvxpy

        found["cvxpy"] = cvxpy.__version__
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("scale", "solvers", "descent", "blocks")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--clients", nargs="+", type=int, help="sizes of scale and solvers")
    parser.add_argument("--out", type=Path, help="where the JSON goes; parts not run are kept")
    parser.add_argument("--figure", type=Path, help="draw the part descent, .svg or .png")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one_size:
        print(json.dumps(measure_size(asked.one_size)))
        return
    found: dict[str, Any] = {}
    if asked.out and asked.out.exists():
        found = json.loads(asked.out.read_text())
    found["machine"] = machine()
    if "scale" in asked.parts:
        found["scale"] = scale(asked.clients or list(SIZES))
    if "solvers" in asked.parts:
        found["solvers"] = solvers(asked.clients or list(SOLVER_SIZES))
    if "descent" in asked.parts:
        found["descent"] = descent()
        if asked.figure:
            draw(found["descent"], asked.figure)
    if "blocks" in asked.parts:
        found["blocks"] = blocks()
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
