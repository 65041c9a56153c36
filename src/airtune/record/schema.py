"""What is recorded: one frozen value a client, a round and a run, and their JSON form.

JSON has no NaN and no infinity. Fields typed `float | None` write null for them (a client
whose loss diverged, a bound that a method does not give); every other number has to be
finite, and a round in which one is not is refused before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from airtune.errors import InputError, RunError

OK = "ok"
"""The status of a client whose update was merged."""


def _where_known() -> Any:
    """Return a field whose key is left out of the JSON where it is None."""
    return field(default=None, metadata={"left_out": True})


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """What one client was asked, did and took in one round.

    Attributes:
        name: the client's name, unique in the run.
        status: "ok"; "sat out" where it was not asked; "lost: …" where its upload did not arrive;
            or why its update was left out, e.g. "rejected: not finite".
        asked_pruning: the plan's pruning rate; None for a client that sat out.
        pruning: the realised rate: parameters left out over parameters that may be; None where
            there was no update.
        local_steps: AdamW steps that it was asked for; None for a client that sat out.
        rank: LoRA rank of its adapter, likewise.
        bits_per_value: of an adapter value in its uplink message, likewise.
        binds: what its plan was bounded by: "air" or "compute", whichever takes longer, and
            "memory" or "floor" where they apply; None for a client that sat out.
        bandwidth_hz: Hz of the uplink that it was given; 0 for a client that sat out.
        rate_bps: bit/s at which its update went up; None where there was none.
        snr_db: dB over the client's own band; None where there is none (traces).
        downlink_s: s to receive the round's adapter.
        compute_s: s to fine-tune.
        upload_s: s to send its update.
        total_s: s, the sum of the three.
        engine_s: s that a deployment's own machinery added to them, measured; None in simulation.
        uplink_bits: bits that it sent.
        downlink_bits: bits that it received.
        flops: floating-point operations of its fine-tuning.
        examples: training examples that it holds.
        label_tokens: answer tokens that it trained on.
        train_loss: mean over its local steps, per answer token.
        eval_loss: of the merged adapter on the text that it holds back, per answer token; None
            where it holds none back or where that was not measured.
        inclusion_probability: with which it was drawn into the cohort; None where every client
            takes part, or the rule gives none.
        success_probability: with which its upload arrives, given what the plan knew; None where
            none can be lost.
        energy_j: J that it drew, the sum of the four below; None where no power is known.
        compute_j: J of fine-tuning.
        transmit_j: J of its radio, sending.
        receive_j: J of its radio, receiving.
        wait_j: J that its device draws in the time of the round in which it does not compute.
    """

    name: str
    status: str = OK
    asked_pruning: float | None
    pruning: float | None
    local_steps: int | None = None
    rank: int | None = None
    bits_per_value: int | None = None
    binds: str | None = None
    bandwidth_hz: float
    rate_bps: float | None
    snr_db: float | None = None
    downlink_s: float
    compute_s: float
    upload_s: float
    total_s: float
    engine_s: float | None = None
    uplink_bits: float
    downlink_bits: float
    flops: float
    examples: int
    label_tokens: int
    train_loss: float | None = None
    eval_loss: float | None = None
    inclusion_probability: float | None = _where_known()
    success_probability: float | None = _where_known()
    energy_j: float | None = None
    compute_j: float | None = None
    transmit_j: float | None = None
    receive_j: float | None = None
    wait_j: float | None = None

    @classmethod
    def of_nothing(cls, name: str, status: str, examples: int = 0) -> ClientRecord:
        """Return the line of a client that computed and sent nothing."""
        return cls(
            name=name,
            status=status,
            asked_pruning=None,
            pruning=None,
            bandwidth_hz=0.0,
            rate_bps=None,
            downlink_s=0.0,
            compute_s=0.0,
            upload_s=0.0,
            total_s=0.0,
            uplink_bits=0.0,
            downlink_bits=0.0,
            flops=0.0,
            examples=examples,
            label_tokens=0,
        )


@dataclass(frozen=True, kw_only=True)
class TurnRecord:
    """One client's work that a merge took up, where rounds are not synchronous.

    Attributes:
        name: the client's name; a client may have several turns in one merge.
        status: as in `ClientRecord`.
        turn: its n-th one, counted from 1.
        start_round: rounds that had ended when it began.
        staleness: tau, merges between its start and this one.
        share: what its answer counted: s(tau), or with fedasync alpha s(tau); 0 if left out.
        started_s: s of the virtual clock at which it began to receive.
        received_s: s at which it had the adapter.
        computed_s: s at which it began to send.
        ended_s: s at which its answer had arrived.
        uplink_bits: bits that it sent.
    """

    name: str
    status: str = OK
    turn: int
    start_round: int
    staleness: int
    share: float
    started_s: float
    received_s: float
    computed_s: float
    ended_s: float
    uplink_bits: float


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round: one line of rounds.jsonl.

    Attributes:
        round: counted from 1.
        method: the planning method.
        round_latency_s: s of the virtual clock that the round took, realised.
        elapsed_s: s of the virtual clock at its end.
        predicted_latency_s: s that the plan expected, before realised counts.
        none_latency_s: s that it would have taken on the same channel under `none`: no
            pruning, equal bandwidth.
        eval_loss: test loss per answer token after the round; None where not measured.
        train_loss: over the merged clients, per answer token.
        metrics: other measures of the test set by name, e.g. accuracy.
        uplink_bits: bits of all clients together.
        downlink_bits: bits that crossed the air downwards (a broadcast counts once).
        flops: of all clients together.
        energy_j: J that the clients drew together; None where the power of one is not known.
        pruning_loss: Q, the plan's weighted cost of pruning.
        kappa: how much pruning slows learning, as the plan assumed.
        objective_s: J = N(Q) T of the plan, s.
        lower_bound_s: no plan's J is below it; None where no certificate was made.
        gap: objective_s / lower_bound_s − 1.
        wall_s: s of real time that simulating the round took.
        cohort: clients that were drawn; None where every client takes part in every round.
        available: clients that could have been drawn, likewise.
        waited_s: s of the virtual clock before the round, until enough clients were available,
            likewise; not part of `round_latency_s`.
        refit_s: s of the virtual clock before the clients train, to receive the adapter and to read
            calibration text again; None in other rounds; not part of `round_latency_s`.
        clients: of the cohort, in the run's order.
        turns: in the order of the answers; empty, and left out of the JSON, where rounds are
            synchronous.
    """

    round: int
    method: str
    round_latency_s: float
    elapsed_s: float
    predicted_latency_s: float | None = None
    none_latency_s: float | None = None
    eval_loss: float | None = None
    train_loss: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    uplink_bits: float
    downlink_bits: float
    flops: float
    energy_j: float | None = None
    pruning_loss: float
    kappa: float
    objective_s: float | None = None
    lower_bound_s: float | None = None
    gap: float | None = None
    wall_s: float
    cohort: int | None = _where_known()
    available: int | None = _where_known()
    waited_s: float | None = _where_known()
    refit_s: float | None = _where_known()
    clients: tuple[ClientRecord, ...]
    turns: tuple[TurnRecord, ...] = field(default=(), metadata={"left_out": True})


@dataclass(frozen=True, kw_only=True)
class ClientSite:
    """Where a client is and what it has: drawn or measured once a run.

    Attributes:
        name: the client's name.
        profile: its kind of device.
        x_m: m east of the base station.
        y_m: m north of it.
        distance_m: m from it, on the ground.
        is_los: whether there is a line of sight; None where no channel model says so.
        path_loss_db: dB, shadowing apart.
        shadowing_db: dB, positive is loss.
        effective_flops: FLOP/s that fine-tuning sustains.
        memory_bytes: of the device.
        examples: training examples that it holds.
        labels: how many examples of each label.
    """

    name: str
    profile: str
    x_m: float
    y_m: float
    distance_m: float
    is_los: bool | None = None
    path_loss_db: float | None = None
    shadowing_db: float | None = None
    effective_flops: float | None = None
    memory_bytes: float | None = None
    examples: int
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What is known before the first round; the `cell` of run.json.

    Attributes:
        clients: in the run's order.
        initial_eval_loss: test loss per answer token before training.
        initial_metrics: other measures of the test set before training.
        model_fingerprint: names the base model's weights. ``text_fingerprint``: the examples.
        model_parameters: of the base model.
        vocabulary: tokens that the model tells apart; ln of it is the loss of a guess.
        adapter_values: of the full adapter.
        setup_s: before the first round, on the virtual clock: the slowest client calibrates.
        setup_flops: of all clients, before the first round.
        knob_costs: which costs the plan of its knobs used: file, SHA-256, and where they were
            measured; empty without `planning.knobs`.
    """

    clients: tuple[ClientSite, ...]
    initial_eval_loss: float | None = None
    initial_metrics: Mapping[str, float | None] = field(default_factory=dict)
    model_fingerprint: str = ""
    text_fingerprint: str = ""
    model_parameters: int | None = None
    vocabulary: int | None = None
    adapter_values: int | None = None
    setup_s: float = 0.0
    setup_flops: float = 0.0
    knob_costs: str = ""


Value = TypeVar("Value", ClientRecord, TurnRecord, RoundRecord, ClientSite, RunDescription)

_HINTS: dict[type, dict[str, Any]] = {
    kind: typing.get_type_hints(kind)
    for kind in (ClientRecord, TurnRecord, RoundRecord, ClientSite, RunDescription)
}


_LEFT_OUT = frozenset(
    entry.name
    for kind in (ClientRecord, RoundRecord)
    for entry in dataclasses.fields(kind)
    if entry.metadata.get("left_out")
)


def json_line(value: ClientRecord | RoundRecord | RunDescription) -> str:
    """Return the value as one line of JSON without its newline.

    Keys stand in the order of the fields and floats in their shortest exact form, so that
    equal values are equal bytes.

    Raises:
        RunError: a number that has to be finite is not.
    """
    _require_finite(value)
    return dump_json(dataclasses.asdict(value, dict_factory=_known))


def _known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: item for k, item in pairs if k not in _LEFT_OUT or not (item is None or item == ())}


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON of plain, NumPy and dataclass values; NaN and infinity become null."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def plain(value: Any) -> Any:
    """Return the value in JSON's own types: str, int, float, bool, None, list, dict."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return str(value)


def from_json(kind: type[Value], values: Any, where: str) -> Value:
    """Return the recorded value; fields that this version does not know are passed over.

    Raises:
        InputError: a field is missing or has another type; names `where` and the field.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: {_quoted(values)} is not a JSON object")
    hints = _HINTS[kind]
    arguments: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.name in values:
            what = f"{where}: '{entry.name}'"
            arguments[entry.name] = _parsed(values[entry.name], hints[entry.name], what)
        elif entry.default is entry.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: '{entry.name}' is missing")
    return kind(**arguments)


def _parsed(value: Any, hint: Any, what: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            kind = typing.get_args(hint)[0]
            return tuple(from_json(kind, item, f"{what}[{i}]") for i, item in enumerate(value))
    elif typing.get_origin(hint) is not None:  # Mapping[str, number]
        if isinstance(value, dict):
            kind = typing.get_args(hint)[1]
            return {key: _parsed(item, kind, f"{what}.{key}") for key, item in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{what} is too large: a finite number was expected") from None
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise InputError(f"{what} is {_quoted(value)}, not of type {name}")


def _quoted(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _require_finite(value: Any, owner: str = "") -> None:
    if isinstance(value, RoundRecord):
        owner = f"round {value.round}: "
    for name, hint in _HINTS[type(value)].items():
        item = getattr(value, name)
        if hint is float and not math.isfinite(item):
            raise RunError(f"{owner}'{name}' is {item}: a finite number was expected")
        if isinstance(item, tuple):
            for part in item:
                _require_finite(part, f"{owner}client '{part.name}': ")
