"""The pilot behind `airtune costs`: what each knob costs, from short federated runs.

Every trial changes all clients' work in one way (a rank, bits, steps, a pruning rate, or some
clients left out) and runs a few rounds from the same start, on the same channels and batches. Its
loss is measured on held-out training text. See `airtune.planning.costs` for what a cost is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune import planning
from airtune.assignment import Mode
from airtune.engines import Engine
from airtune.errors import InputError, RunError
from airtune.planning.assigning import assignments_of
from airtune.planning.broadcast import SCALE_BITS
from airtune.planning.costs import KnobCosts, Measured, Pair
from airtune.planning.inputs import Situation
from airtune.planning.kappa import learning_curve
from airtune.planning.knobs import halves
from airtune.record.files import append_line, explained, write_durably
from airtune.record.reading import complete_lines
from airtune.rounds.cell import Cell, Decision, open_cell
from airtune.rounds.loop import begin, step
from airtune.scenario import Scenario

PRUNING_RATES = (0.2, 0.4, 0.6)
FEW_BITS = (8, 4, 2)

WHOLE = "whole"
SHARES = 1001
"""How finely e is looked for."""


@dataclass(frozen=True)
class Trial:
    """One way to change all clients' work; what is None stays as the scenario has it."""

    name: str
    rank: int | None = None
    bits: int | None = None
    steps: int | None = None
    pruning: float = 0.0
    left_out: tuple[int, ...] = ()
    """Clients that sit every round out."""

    def mode(self, own: Mode) -> Mode:
        """Return a client's mode in this trial."""
        changed = replace(
            own,
            rank=min(own.rank, self.rank or own.rank),
            local_steps=self.steps or own.local_steps,
        )
        if self.bits is None:
            return changed
        return replace(changed, bits_per_value=self.bits, bits_per_scale=SCALE_BITS)


def trials_of(scenario: Scenario) -> tuple[Trial, ...]:
    """Return the pilot's trials: the whole work first, each knob alone, then three pairs."""
    training, most = scenario.training, scenario.pruning.max_pruning
    ranks = halves(training.lora_rank)[1:]
    steps = halves(training.local_steps)[1:]
    rates = [rate for rate in PRUNING_RATES if rate <= most]
    clients = len(scenario.client_devices)
    alone = [
        *(Trial(f"rank {rank}", rank=rank) for rank in ranks),
        *(Trial(f"bits {bits}", bits=bits) for bits in FEW_BITS),
        *(Trial(f"steps {count}", steps=count) for count in steps),
        *(Trial(f"pruning {rate:g}", pruning=rate) for rate in rates),
    ]
    if clients > 1:
        # The clients that come last in the file: an even share, whichever devices they are.
        alone.append(Trial("absent", left_out=tuple(range(clients - clients // 2, clients))))
    if clients > 2:
        alone.append(Trial("absent, all but one", left_out=tuple(range(1, clients))))
    pairs = [
        Trial(f"{a.name} + {b.name}", **_together(a, b)) for a, b in _pairs_of(ranks, steps, rates)
    ]
    return (Trial(WHOLE), *alone, *pairs)


def _pairs_of(
    ranks: Sequence[int], steps: Sequence[int], rates: Sequence[float]
) -> Iterator[tuple[Trial, Trial]]:
    bits = Trial("bits 4", bits=4)
    if steps:
        yield bits, Trial(f"steps {steps[0]}", steps=steps[0])
    if ranks and rates:
        rank, rate = ranks[len(ranks) // 2], rates[len(rates) // 2]
        yield Trial(f"rank {rank}", rank=rank), Trial(f"pruning {rate:g}", pruning=rate)
        if steps:
            halved = Trial(f"steps {steps[0]}", steps=steps[0])
            yield halved, Trial(f"pruning {rate:g}", pruning=rate)


def _together(a: Trial, b: Trial) -> dict[str, Any]:
    return {
        "rank": a.rank or b.rank,
        "bits": a.bits or b.bits,
        "steps": a.steps or b.steps,
        "pruning": a.pruning or b.pruning,
    }


def held_out(scenario: Scenario, seed: int, rounds: int) -> Scenario:
    """Return the pilot's scenario: judged on training text that no client trains on."""
    task = scenario.task.model_copy(update={"eval_part": "train"})
    evaluation = scenario.evaluation.model_copy(
        update={"every_rounds": 1, "metrics_every_round": False, "generate": False}
    )
    return scenario.model_copy(
        update={"seed": seed, "rounds": rounds, "task": task, "evaluation": evaluation}
    )


def run_pilot(
    scenario: Scenario,
    *,
    out: Path,
    rounds: int,
    seeds: Sequence[int],
    engine: Callable[[Scenario], Engine],
    say: Callable[[str], None],
    command: str,
) -> KnobCosts:
    """Run every trial for every seed and write the costs to `out`.

    What has been run lies beside it, in `out` with `.trials.jsonl` behind its name: a pilot that
    was stopped goes on from there.

    Args:
        scenario: cell, model, task and training; its planning plays no part.
        out: the costs file.
        rounds: of each trial.
        seeds: of data, channels and start; trials are paired within a seed.
        engine: makes what does the clients' work, once a seed.
        say: told one line a trial.
        command: as it was given, for the provenance.

    Raises:
        InputError: a seed twice, or trials of another pilot lie beside `out`.
        RunError: training without any change does not lower the loss: nothing can be compared.
    """
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"--seeds {','.join(map(str, seeds))}: at least one, each once")
    trials = trials_of(scenario)
    store = out.with_name(out.name + ".trials.jsonl")
    mark = _mark(scenario, rounds)
    known = _known(store, mark)
    for seed in seeds:
        waiting = [trial for trial in trials if (trial.name, seed) not in known]
        if not waiting:
            continue
        asked = held_out(scenario, seed, rounds)
        worker = engine(asked)
        try:
            for trial in waiting:
                ended = _run_trial(asked, trial, worker)
                known[trial.name, seed] = ended
                _append(store, {"mark": mark, "trial": trial.name, "seed": seed, **asdict(ended)})
                done = sum((t.name, s) in known for t in trials for s in seeds)
                total = len(trials) * len(seeds)
                say(f"{done}/{total}  seed {seed}, {trial.name}: {ended.losses[-1]:.4f}")
        finally:
            worker.close()
    costs = costs_from(scenario, trials, known, seeds, command=command, rounds=rounds)
    written = out.with_name(out.name + ".new")
    written.write_text(costs.model_dump_json(indent=1) + "\n", encoding="utf-8")
    written.replace(out)
    return costs


@dataclass(frozen=True)
class Ended:
    """What came of a trial."""

    losses: tuple[float, ...]
    """Before training and after each round."""
    share: float
    """Of the examples whose clients were left out."""


def _run_trial(scenario: Scenario, trial: Trial, engine: Engine) -> Ended:
    def decide(cell: Cell, situation: Situation) -> Decision:
        plan = planning.plan(situation.problem, "none", bound=False)
        asked = replace(plan, pruning=np.full(len(situation.cohort), trial.pruning))
        modes = [
            None if client in trial.left_out else trial.mode(mode)
            for client, mode in zip(situation.cohort, situation.modes, strict=True)
        ]
        return Decision(asked, assignments_of(asked, modes, situation.link, situation.cohort))

    with open_cell(scenario, engine=engine, decide=decide) as cell:
        state = begin(cell)
        for _ in range(scenario.rounds):
            state, _ = step(cell, state)
        examples = [client.examples for client in cell.federation.clients]
    losses = tuple(loss for loss in state.losses if loss is not None)
    if len(losses) <= scenario.rounds:
        raise RunError(f"trial '{trial.name}': the loss is not finite; lower the learning rate")
    return Ended(losses, sum(examples[k] for k in trial.left_out) / sum(examples))


def lost_share(whole: Sequence[float], trial: Sequence[float]) -> float:
    """Return e: the share of every round that a trial loses against the unchanged run.

    The unchanged run's losses give the curve L(m) = a + (L0 − a)/(1 + m/h) over rounds; e is where
    the trial's losses after r rounds are nearest, in squares, to L(r(1 − e)). All rounds count: a
    last loss alone says little where the curve is flat, and a first one where it is steep. A trial
    may have another number of rounds than the unchanged run.
    """
    rounds = np.arange(len(whole), dtype=float)
    end, pace = learning_curve(np.asarray(whole, dtype=float), rounds)
    after, shares = np.arange(1.0, len(trial)), np.linspace(0.0, 1.0, SHARES)[:, None]
    expected = end + (whole[0] - end) / (1.0 + after * (1.0 - shares) / pace)
    misfit = ((np.asarray(trial[1:]) - expected) ** 2).sum(1)
    return float(shares[int(np.argmin(misfit)), 0])


def costs_from(
    scenario: Scenario,
    trials: Sequence[Trial],
    ended: dict[tuple[str, int], Ended],
    seeds: Sequence[int],
    *,
    command: str,
    rounds: int,
) -> KnobCosts:
    """Return the costs that the trials' losses say.

    Raises:
        RunError: the unchanged run does not lower the loss.
    """
    for seed in seeds:
        whole = ended[WHOLE, seed].losses
        if min(whole[1:]) >= whole[0]:
            raise RunError(f"seed {seed}: {rounds} rounds do not lower the loss; train for longer")

    def lost(trial: Trial, seed: int) -> float:
        own = ended[trial.name, seed]
        share = lost_share(ended[WHOLE, seed].losses, own.losses)
        return min(1.0, share / (own.share or 1.0))

    def measured(trial: Trial) -> Measured:
        values = [lost(trial, seed) for seed in seeds]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Measured(cost=float(np.mean(values)), spread=spread)

    free = Measured(cost=0.0)
    by_name = {trial.name: measured(trial) for trial in trials}
    alone = [trial for trial in trials if " + " not in trial.name]
    clients = len(scenario.client_devices)
    absent = [trial for trial in alone if trial.left_out]
    training, payload_bits = scenario.training, scenario.aggregation.payload_bits_per_value
    return KnobCosts(
        rank={training.lora_rank: free} | {t.rank: by_name[t.name] for t in alone if t.rank},
        bits={payload_bits: free} | {t.bits: by_name[t.name] for t in alone if t.bits},
        steps={1.0: free}
        | {t.steps / training.local_steps: by_name[t.name] for t in alone if t.steps},
        # Q is linear in the share that sits out; what is lost is not. The higher cost counts.
        absent=max(
            (by_name[trial.name] for trial in absent),
            key=lambda one: one.cost,
            default=Measured(cost=1.0),
        ),
        pruning={t.pruning: by_name[t.name] for t in alone if t.pruning},
        pairs=tuple(
            Pair(
                knobs=tuple(t.name.split(" + ")),
                measured=by_name[t.name].cost,
                product=1 - float(np.prod([1 - by_name[n].cost for n in t.name.split(" + ")])),
            )
            for t in trials
            if " + " in t.name
        ),
        provenance={
            "command": command,
            "model": scenario.model.id,
            "task": scenario.task.name,
            "clients": clients,
            "local_steps": scenario.training.local_steps,
            "learning_rate": scenario.training.learning_rate,
            "rounds": rounds,
            "seeds": list(seeds),
            "eval_examples": scenario.task.eval_examples,
            "losses": {t.name: [ended[t.name, s].losses for s in seeds] for t in trials},
        },
    )


def _mark(scenario: Scenario, rounds: int) -> str:
    """Return a hash of what the trials depend on: the same pilot finds its own again."""
    values = scenario.model_dump(mode="json", exclude={"seed", "rounds", "description", "planning"})
    text = json.dumps([values, rounds], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _known(store: Path, mark: str) -> dict[tuple[str, int], Ended]:
    known: dict[tuple[str, int], Ended] = {}
    lines, size = complete_lines(store)
    if store.exists() and store.stat().st_size != size:
        # Cut off in the middle of writing: that trial is run again.
        write_durably(store, b"".join(line + b"\n" for line in lines))
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # no line of a trial, or one that was cut off: it is run again
        if entry["mark"] != mark:
            raise InputError(
                f"'{store}' holds the trials of another scenario or number of rounds; "
                "remove it, or give another --out"
            )
        known[entry["trial"], entry["seed"]] = Ended(tuple(entry["losses"]), entry["share"])
    return known


def _append(store: Path, entry: dict[str, Any]) -> None:
    with explained(store, 0):
        store.parent.mkdir(parents=True, exist_ok=True)
    append_line(store, json.dumps(entry))
