"""Ten thousand mutated introductions and updates: none passes that should not, none crashes.

The mutator is seeded and knows the fields: it draws values far outside, at the edge and of other
types. Whether a mutated message may pass is decided here again, by plain rules that do not use
the checking code.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from airtune.adapters.slices import gather_adapter
from airtune.deploy.checks import checked_update, noise_range
from airtune.deploy.codec import adapter_arrays, structure_array
from airtune.deploy.introductions import Known
from airtune.deploy.privacy import parse_privacy, privatise
from airtune.deploy.protocol import PROTOCOL, Introduction, ProtocolError, Update, unpack
from airtune.deploy.roster import Node, Reply, Roster
from airtune.errors import InputError
from airtune.models.structure import whole
from airtune.models.workload import StepTokens, full_sizes, realised_pruning, training_flops
from airtune.planning.inputs import full_steps, modes_of
from airtune.randomness import generator
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientJob, ClientUpdate
from airtune.training.worker import Worker
from assigned import assignment

MUTATIONS = 5000
"""Of introductions, and as many of updates."""
VICTIM = "jetson-orin-nano-1"
Values = dict[str, Any]

NUMBERS = (
    -1, 0, 1, 2, 3, 5, 8, 16, 47, 48, 49, 64, 65, 1000, 2**31, 2**40, 2**63, 2**200, -(2**63),
    0.5, -0.5, 1e-300, 1e300, -1e300, 65504.0, math.nan, math.inf, -math.inf, 1e15, 1e17,
)  # fmt: skip
OTHERS = (
    None, True, "", "x", "\x1b[2J", "\u202e", "a\nb", "A" * 3000, [], {}, [[0, 0]], {"a": 1}, "0",
    "1e9", [None], [[0, 0], [1, 2]], {"clip": 1e9, "noise_multiplier": 1e9},
    {"clip": 0.5, "noise_multiplier": 1.0}, {"clip": 1e-9, "noise_multiplier": 1e-9},
    "../../etc/passwd", "jetson-orin-nano-2", {"\x1b": 3}, [{"rows": 1}],
)  # fmt: skip


@dataclass
class Ground:
    """One run at the server: what it knows, and what an honest device would send."""

    known: Known
    roster: Roster
    introduction: Values
    update: Values
    arrays: dict[str, np.ndarray]
    job: ClientJob


def ground(*overrides: str, private: bool = False) -> Ground:
    scenario = load_scenario("tiny", ["pruning.max_pruning=0.0", *overrides])
    worker = Worker(scenario)
    index = scenario.client_names.index(VICTIM)
    labels = frozenset(label for c in worker.federation.clients for label in c.labels)
    privacy = parse_privacy("clip=0.5,noise=1.0") if private else None
    known = Known(scenario, worker.shape, labels, privacy)
    own = worker.federation.clients[index]
    steps = [
        {"rows": s.rows, "length": s.length, "label_tokens": s.label_tokens}
        for s in worker.step_tokens(1, index)
    ]
    introduction = {
        "kind": "introduction", "protocol": PROTOCOL, "version": "0.1.0", "client": VICTIM,
        "model_fingerprint": worker.federation.model_fingerprint, "examples": own.examples,
        "labels": {} if private else {str(k): n for k, n in own.labels.items()},
        "pruning_cost": None, "most_pruned": None, "profile": "jetson-orin-nano",
        "effective_flops": 1e7, "memory_bytes": 8e9, "next_steps": [] if private else steps,
        "privacy": None if privacy is None else privacy.model_dump(),
    }  # fmt: skip
    start = worker.initial_adapter()
    told = assignment(index, modes_of(scenario)[index])
    job = ClientJob(round=1, assignment=told, adapter=start)
    values = {name: value.numpy() for name, value in start.items()}
    rng = generator(0, "mutations")
    step = scenario.training.learning_rate
    moved = {n: v + step * rng.standard_normal(v.shape).astype("f4") for n, v in values.items()}
    if privacy is not None:
        noise = privacy.noise_multiplier
        moved = privatise(values, moved, clip=privacy.clip, noise_multiplier=noise, rng=rng)
    adapter = {name: torch.from_numpy(np.asarray(v, dtype="f4")) for name, v in moved.items()}
    kept = structure_array(whole(worker.shape), worker.shape)
    full = full_steps(scenario.training, scenario.task.max_tokens)
    sizes, counted = full_sizes(worker.shape), full if private else worker.step_tokens(1, index)
    flops = sum(training_flops(worker.shape, sizes, one, told.mode) for one in counted)
    update = {
        "kind": "update", "run": "run-1", "round": 1, "client": VICTIM, "examples": own.examples,
        "train_loss": None if private else 2.5, "compute_s": 0.4,
        "epsilon": 3.0 if private else None, "next_steps": [] if private else steps,
        "emulated_s": flops / 1e7,
    }  # fmt: skip
    roster = Roster(known, worker.federation.model_fingerprint, "run-1")
    return Ground(known, roster, introduction, update, adapter_arrays(adapter, 32) | kept, job)


def packed(values: Values, arrays: dict[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save(arrays, metadata={"airtune": json.dumps(values)})


def mutated(values: Values, rng: np.random.Generator) -> Values:
    """Return the fields with one to three of them, at any depth, replaced, dropped or added."""
    changed = copy.deepcopy(values)
    for _ in range(int(rng.integers(1, 4))):
        at: Any = changed
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.6:
                at = at[key]
                continue
            action = rng.random()
            if action < 0.08:
                del at[key]
            elif action < 0.15 and isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            elif action < 0.6 and isinstance(at[key], (int, float)):
                scaled = at[key] * NUMBERS[int(rng.integers(len(NUMBERS)))]
                near = at[key] + int(rng.integers(-2, 3))
                at[key] = near if rng.random() < 0.4 else scaled
            else:
                pool = (*NUMBERS, *OTHERS)
                at[key] = copy.deepcopy(pool[int(rng.integers(len(pool)))])
            break
    if rng.random() < 0.03:
        changed["file"] = "/etc/passwd"
    return changed


def steps_fit(steps: Any, scenario: Scenario, private: bool) -> bool:
    rows, longest = scenario.training.batch_size, scenario.task.max_tokens
    count = 0 if private else scenario.training.local_steps
    return len(steps) == count and all(
        set(s) == {"rows", "length", "label_tokens"}
        and 1 <= s["rows"] <= rows
        and 1 <= s["length"] <= longest
        and 0 <= s["label_tokens"] <= s["rows"] * s["length"]
        for s in steps
    )


def introduction_fits(v: Values, g: Ground, waited_s: float) -> bool:
    """Whether the server may believe this: the ranges written out once more."""
    scenario, honest = g.known.scenario, g.introduction
    fixed = all(v[k] == honest[k] for k in ("kind", "protocol", "client", "model_fingerprint"))
    most = -(-scenario.task.train_examples // len(scenario.client_names))
    private = v.get("privacy") is not None
    if private:
        allowed, asked = g.known.privacy, v["privacy"]
        if allowed is None or asked["clip"] > 0.5 or asked["noise_multiplier"] > 1.0:
            return False
        if min(asked["clip"], asked["noise_multiplier"]) <= 0 or v["labels"]:
            return False
    else:
        labels = v["labels"]
        if not all(k in g.known.labels for k in labels):
            return False
        if sum(labels.values()) != v["examples"] or min(labels.values()) < 1:
            return False
    return (
        fixed
        and scenario.partition.min_examples <= v["examples"] <= most
        and v["pruning_cost"] is v.get("most_pruned") is None
        and 1e5 < v["memory_bytes"] <= 1e15
        # A tenth of the scenario's profile, or what the rehearsal shows, at the least.
        and 1e5 < v["effective_flops"] <= 1e16
        and steps_fit(v["next_steps"], scenario, private)
        and set(v) <= set(honest)
    )


def update_fits(v: Values, g: Ground, waited_s: float) -> bool:
    honest, private = g.update, g.introduction["privacy"] is not None
    fixed = all(v[k] == honest[k] for k in ("kind", "run", "round", "client", "examples"))
    if private:
        said = v["train_loss"] is None and 0 < v["epsilon"] < math.inf
    else:
        said = v.get("epsilon") is None and 0 <= v["train_loss"] <= 1e4
    return (
        fixed
        and said
        and 1e-12 < v["compute_s"] <= waited_s
        and emulated_fits(v.get("emulated_s"), honest["emulated_s"], private)
        and steps_fit(v["next_steps"], g.known.scenario, private)
        and set(v) <= set(honest)
    )


def emulated_fits(said: float | None, counted_s: float, private: bool) -> bool:
    ratio = 1.0 if said is None else said / counted_s
    return 0.0 < ratio < 1 + 2e-6 if private else abs(ratio - 1) < 2e-6


def holds(rule: Callable[..., bool], *arguments: Any) -> bool:
    """A rule that cannot even be applied is not kept."""
    try:
        return rule(*arguments)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return False


def admitted(g: Ground, values: Values, waited_s: float) -> bool:
    g.roster.members.clear()
    g.roster.refused.clear()
    g.roster._accepted.clear()
    node = Node(7, VICTIM, b"", online=True)
    body = packed(values, {})
    reason = g.roster.admit(node, Reply("m", body), waited_s=waited_s)
    assert reason is None or reason.isprintable()
    assert reason is None or "cannot be checked" not in reason
    assert (reason is None) == (VICTIM in g.roster.members)
    return reason is None


def taken(g: Ground, body: bytes, waited_s: float = 1.0) -> ClientUpdate | None:
    own = Introduction.model_validate_json(json.dumps(g.introduction))
    steps = [StepTokens(**step) for step in g.introduction["next_steps"]]
    scenario = g.known.scenario
    try:
        fields, arrays = unpack(body, Update)
        return checked_update(
            fields, arrays, job=g.job, own=own, run="run-1", scenario=scenario,
            shape=g.known.shape, waited_s=waited_s,
            steps=steps or full_steps(scenario.training, scenario.task.max_tokens),
        )  # fmt: skip
    except (ProtocolError, InputError) as error:
        if not str(error).isprintable():
            raise AssertionError(f"control characters in {str(error)!r}") from None
        return None


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "private"])
def server(request: pytest.FixtureRequest) -> Ground:
    return ground("aggregation.payload_bits_per_value=32", private=bool(request.param))


pytestmark = pytest.mark.usefixtures("one_thread")


def test_honest_messages_pass(server: Ground) -> None:
    assert admitted(server, server.introduction, 5.0)
    assert taken(server, packed(server.update, server.arrays)) is not None
    assert introduction_fits(server.introduction, server, 5.0)
    assert update_fits(server.update, server, 1.0)


def test_mutated_introductions(server: Ground) -> None:
    rng = generator(1, "mutations")
    outcomes: Counter[bool] = Counter()
    for _ in range(MUTATIONS // 2):
        values = mutated(server.introduction, rng)
        passed = admitted(server, values, 5.0)
        if passed:
            assert holds(introduction_fits, values, server, 5.0), values
        outcomes[passed] += 1
    assert outcomes[False] > 0.5 * MUTATIONS / 2
    assert outcomes[True] > 0  # edges that are allowed pass


def test_mutated_updates(server: Ground) -> None:
    rng = generator(2, "mutations")
    outcomes: Counter[bool] = Counter()
    honest = server.arrays["values"]
    values_sent = len(honest)
    for _ in range(MUTATIONS // 2):
        fields = mutated(server.update, rng) if rng.random() < 0.6 else server.update
        arrays, sound = dict(server.arrays), True
        if fields is server.update:
            arrays, sound = mutated_arrays(server, honest, rng)
        update = taken(server, packed(fields, arrays))
        if update is not None:
            assert holds(update_fits, fields, server, 1.0), fields
            assert sound
            assert all(bool(value.isfinite().all()) for value in update.adapter.values())
        outcomes[update is not None] += 1
    assert values_sent == len(server.arrays["values"])
    assert outcomes[False] > 0.5 * MUTATIONS / 2
    assert outcomes[True] > 0


def mutated_arrays(
    g: Ground, honest: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], bool]:
    """Return arrays with a fault, and whether they may still pass."""
    arrays = dict(g.arrays)
    before = np.concatenate([g.job.adapter[n].numpy().ravel() for n in sorted(g.job.adapter)])
    kind = int(rng.integers(9))
    values = honest.copy()
    if kind == 0:  # one value, from tiny to the largest that is sent
        change = float(10.0 ** rng.uniform(-3, 5))
        values[int(rng.integers(len(values)))] += change
        arrays["values"] = values
        return arrays, distance_allowed(g, before, values)
    if kind == 1:  # all of them
        values += np.float32(10.0 ** rng.uniform(-4, 4))
        arrays["values"] = values
        return arrays, distance_allowed(g, before, values)
    if kind == 2:
        values[int(rng.integers(len(values)))] = [np.nan, np.inf, -np.inf][int(rng.integers(3))]
        arrays["values"] = values
    elif kind == 3:
        arrays["values"] = values[: int(rng.integers(len(values)))]
    elif kind == 4:
        arrays["values"] = np.full_like(values, 65504.0)
    elif kind == 5:
        arrays.pop(["values", "kept"][int(rng.integers(2))])
    elif kind == 6:
        kept = arrays["kept"].copy()
        kept.flat[int(rng.integers(kept.size))] ^= int(rng.integers(1, 256))
        arrays["kept"] = kept
    elif kind == 7:
        arrays["\x1b[2J"] = np.zeros(3, np.float32)
    else:
        arrays["values"] = values.astype([np.float64, np.uint8, np.int32][int(rng.integers(3))])
    return arrays, False


def distance_allowed(g: Ground, before: np.ndarray, after: np.ndarray) -> bool:
    """Written out once more, with room for rounding: how far an update may be from its start."""
    change = (after - before).astype(np.float64)
    moved, count = float(np.linalg.norm(change)), len(after)
    if g.introduction["privacy"] is not None:
        privacy = parse_privacy("clip=0.5,noise=1.0")
        least, most, each = noise_range(privacy, count)
        slack = 0.01 * float(np.linalg.norm(after))
        inside = least - slack <= moved <= most + slack
        return inside and float(np.abs(change).max()) <= 1.05 * each + 0.01 * np.abs(after).max()
    steps, rate = g.job.assignment.mode.local_steps, g.known.scenario.training.learning_rate
    reach = 1.2 * steps * 3.17 * rate * math.sqrt(count)
    return moved <= reach + 0.011 * float(np.linalg.norm(before)) + 1e-6


def test_a_privacy_announcement_does_not_lift_the_bound(server: Ground) -> None:
    everywhere = np.full_like(server.arrays["values"], 65504.0)
    body = packed(server.update, {**server.arrays, "values": everywhere})
    assert taken(server, body) is None
    loud = {"clip": 1e6, "noise_multiplier": 1e6, "delta": 1e-5, "max_epsilon": None}
    lying = {**server.introduction, "privacy": loud, "labels": {}, "next_steps": []}
    assert not admitted(server, lying, 5.0)


def test_a_submodel_is_the_planned_one(server: Ground) -> None:
    shape = server.known.shape
    full = whole(shape)
    half = replace(full, channels=tuple(c[: len(c) // 2] for c in full.channels))
    kept = gather_adapter(server.job.adapter, half, shape)
    if server.introduction["privacy"] is not None:
        return  # whole models alone
    arrays = adapter_arrays(kept, 32) | structure_array(half, shape)
    assert taken(server, packed(server.update, arrays)) is None
    asked = replace(server.job.assignment, pruning=realised_pruning(shape, half.sizes))
    planned = replace(server, job=replace(server.job, assignment=asked))
    # A time that was counted for the whole model is not the half one's.
    assert taken(planned, packed(server.update, arrays)) is None
    assert taken(planned, packed({**server.update, "emulated_s": None}, arrays)) is not None


def test_noise_that_was_announced_has_to_be_there() -> None:
    server = ground("aggregation.payload_bits_per_value=32", private=True)
    names = sorted(server.job.adapter)
    silent = np.concatenate([server.job.adapter[name].numpy().ravel() for name in names])
    assert taken(server, packed(server.update, {**server.arrays, "values": silent})) is None


def test_a_speed_is_shown_by_the_clock_or_named_by_the_scenario(tmp_path: Path) -> None:
    server = ground()
    crawling = {**server.introduction, "effective_flops": 1e4}
    assert not admitted(server, crawling, 5.0)
    assert not admitted(server, {**server.introduction, "effective_flops": 1e20}, 5.0)
    # A device that really took so long may say so; and the same words again are not timed anew.
    assert admitted(server, crawling, 1e6)
    node = Node(7, VICTIM, b"", online=True)
    assert server.roster.admit(node, Reply("m", packed(crawling, {})), waited_s=0.1) is None
