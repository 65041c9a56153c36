"""What a record adds up to. Sums, means and ratios of recorded figures; nothing is modelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airtune.record import ClientRecord, Record
from airtune.report.numbers import NOTHING, counted, digits, loss, seconds
from airtune.report.population import NOT_DRAWN

OK = "ok"
SAT_OUT = "sat out"
"""The status of a client that the round did not ask to train."""
_NEAR_GUESS = 0.01
# So close to ln V, relatively, a loss counts as that of a guess.


@dataclass(frozen=True)
class Totals:
    """A whole run in figures; units are in the names, None is what was not recorded."""

    rounds: int
    virtual_time_s: float
    none_time_s: float | None
    predicted_time_s: float | None
    initial_loss: float | None
    final_loss: float | None
    best_loss: float | None
    uplink_bits: float
    downlink_bits: float
    flops: float
    energy_j: float | None
    """None where the power of a client is not known."""
    mean_gap: float | None
    worst_gap: float | None
    updates: int
    merged: int
    lost: int
    wall_s: float
    setup_s: float
    """Of the virtual time, what passes before the first round."""
    engine_s: float | None
    """Mean s a round that a deployment's machinery added for its slowest client; None where the
    clock is virtual."""


@dataclass(frozen=True)
class ClientSummary:
    """One client over all rounds: means of what it was given and took."""

    number: int
    name: str
    profile: str
    distance_m: float | None
    is_los: bool | None
    examples: int
    pruning: float | None
    bandwidth_hz: float
    rate_bps: float | None
    downlink_s: float
    compute_s: float
    upload_s: float
    uplink_bits: float
    flops: float
    times_last: int
    left_out: int
    sat_out: int


def totals(record: Record) -> Totals:
    """Add up a run."""
    rounds, cell = record.rounds, record.description
    losses = [r.eval_loss for r in rounds if r.eval_loss is not None]
    gaps = [r.gap for r in rounds if r.gap is not None]
    clients = [client for r in rounds for client in r.clients if client.status != SAT_OUT]
    return Totals(
        rounds=len(rounds),
        virtual_time_s=rounds[-1].elapsed_s if rounds else 0.0,
        none_time_s=_sum(
            # Who waits for devices waits without pruning, too.
            None if r.none_latency_s is None else r.none_latency_s + (r.waited_s or 0.0)
            for r in rounds
        ),
        predicted_time_s=_sum(r.predicted_latency_s for r in rounds),
        initial_loss=cell.initial_eval_loss if cell else None,
        final_loss=losses[-1] if losses else None,
        best_loss=min(losses, default=None),
        uplink_bits=sum(r.uplink_bits for r in rounds),
        downlink_bits=sum(r.downlink_bits for r in rounds),
        flops=sum(r.flops for r in rounds) + (cell.setup_flops if cell else 0.0),
        energy_j=_sum(r.energy_j for r in rounds),
        mean_gap=sum(gaps) / len(gaps) if gaps else None,
        worst_gap=max(gaps, default=None),
        updates=len(clients),
        merged=sum(client.status == OK for client in clients),
        lost=sum(map(is_lost, clients)),
        wall_s=sum(r.wall_s for r in rounds),
        setup_s=cell.setup_s if cell else 0.0,
        engine_s=_engine_s(record),
    )


def _engine_s(record: Record) -> float | None:
    measured = [[c.engine_s for c in r.clients if c.engine_s is not None] for r in record.rounds]
    longest = [max(each) for each in measured if each]
    return sum(longest) / len(longest) if longest else None


def _sum(values: Iterable[float | None]) -> float | None:
    """Sum, or None where one is missing: a sum of some rounds would mislead."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


def last_client(clients: Sequence[ClientRecord]) -> int | None:
    """Return the index of the client that the round waited for."""
    return max(range(len(clients)), key=lambda k: clients[k].total_s, default=None)


def is_left_out(client: ClientRecord) -> bool:
    """Return whether the client was asked for an update that was then not merged."""
    return client.status not in (OK, SAT_OUT, NOT_DRAWN)


def is_lost(client: ClientRecord) -> bool:
    """Return whether the client's upload did not arrive."""
    return client.status.startswith("lost: ")


def time_split(record: Record) -> tuple[float, float, float]:
    """Return the mean s a round of download, compute and upload, of whom each round waited for."""
    waited = [r.clients[k] for r in record.rounds if (k := last_client(r.clients)) is not None]
    count = len(waited) or 1
    return (
        sum(client.downlink_s for client in waited) / count,
        sum(client.compute_s for client in waited) / count,
        sum(client.upload_s for client in waited) / count,
    )


def client_summaries(record: Record) -> list[ClientSummary]:
    """Summarise every client, in the run's order."""
    if not record.rounds:
        return []
    sites = {site.name: site for site in record.description.clients} if record.description else {}
    drawn = {client.name for r in record.rounds for client in r.clients}
    known = [*sites, *(client.name for client in record.rounds[-1].clients)]
    names = [name for name in dict.fromkeys(known) if name in drawn]
    by_name: dict[str, list[ClientRecord]] = {name: [] for name in names}
    last = dict.fromkeys(names, 0)
    for r in record.rounds:
        slowest = last_client(r.clients)
        for k, client in enumerate(r.clients):
            if client.status == NOT_DRAWN:
                continue
            by_name.setdefault(client.name, []).append(client)
            last[client.name] = last.get(client.name, 0) + (k == slowest)
    return [
        _client_summary(number, own, sites.get(name), last[name])
        for number, (name, own) in enumerate(by_name.items(), start=1)
    ]


def _client_summary(
    number: int, own: Sequence[ClientRecord], site: Any, times_last: int
) -> ClientSummary:
    # A client that sits out has zeros in its record: they say nothing of the rounds it is in.
    asked = [client for client in own if client.status != SAT_OUT]

    def mean(key: str) -> float:
        return known_mean(key) or 0.0

    def known_mean(key: str) -> float | None:
        values = [value for client in asked if (value := getattr(client, key)) is not None]
        return sum(values) / len(values) if values else None

    return ClientSummary(
        number=number,
        name=own[0].name,
        profile=site.profile if site else NO_PROFILE,
        distance_m=site.distance_m if site else None,
        is_los=site.is_los if site else None,
        examples=own[-1].examples,
        pruning=known_mean("pruning"),
        bandwidth_hz=mean("bandwidth_hz"),
        rate_bps=known_mean("rate_bps"),
        downlink_s=mean("downlink_s"),
        compute_s=mean("compute_s"),
        upload_s=mean("upload_s"),
        uplink_bits=sum(client.uplink_bits for client in own),
        flops=sum(client.flops for client in own),
        times_last=times_last,
        left_out=sum(is_left_out(client) for client in own),
        sat_out=len(own) - len(asked),
    )


NO_PROFILE = "device"


def headline(record: Record) -> str:
    """Say in one sentence what the run did, with its own figures."""
    total = totals(record)
    if not total.rounds:
        return "No round has ended yet"
    planned = record.scenario.get("rounds", total.rounds)
    count = counted(total.rounds, "round")
    if total.rounds < planned and not record.finished:
        count = f"{total.rounds:,} of {counted(planned, 'round')}"
    clock = "virtual time" if total.engine_s is None else "time measured on the devices"
    text = f"{count} in {seconds(total.virtual_time_s)} of {clock}"
    if total.setup_s:
        text += f" ({seconds(total.setup_s)} of them calibration before the first)"
    if total.initial_loss is not None and total.final_loss is not None:
        text += f", test loss {loss(total.initial_loss)} → {loss(total.final_loss)}"
    if record.method != "none" and total.none_time_s is not None and total.virtual_time_s > 0:
        times = total.none_time_s / total.virtual_time_s
        them = "it" if total.rounds == 1 else "the same rounds"
        text += (
            f"; without pruning and with equal bandwidth {them} would have taken "
            f"{seconds(total.none_time_s)}, {digits(times, 2)} times as long; the loss they would "
            "have ended at is not known"
        )
    return text


def loss_of_a_guess(record: Record) -> str | None:
    """Say that the final test loss is that of a guess among all tokens, ln V; else None."""
    final, cell = totals(record).final_loss, record.description
    if final is None or cell is None or not cell.vocabulary or cell.vocabulary < 2:
        return None
    guess = math.log(cell.vocabulary)
    if abs(final - guess) <= guess * _NEAR_GUESS:
        where = "stands at"
    elif final > guess and cell.initial_eval_loss is not None and final >= cell.initial_eval_loss:
        where = "is not lower than before training, and above"
    else:
        return None
    return (
        f"the test loss {where} ln V = {loss(guess)}, what a guess among all V = "
        f"{cell.vocabulary:,} tokens has: the model predicts nothing. Are its weights loaded, is "
        "training.learning_rate too large, do the data fit the tokenizer?"
    )


def comparison_rows(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Compare runs: one row each, with the time to the loss that all of them reach.

    The common target is the best test loss of the run whose best is worst. A run reaches it
    in the first evaluated round at or below it; nothing is interpolated.
    """
    bests = [totals(record).best_loss for record in records.values()]
    known = [best for best in bests if best is not None]
    target = max(known) if known and len(known) == len(bests) else None
    return [_comparison_row(name, record, target) for name, record in records.items()]


def _comparison_row(name: str, record: Record, target: float | None) -> dict[str, Any]:
    total = totals(record)
    reached = next(
        (r for r in record.rounds if None not in (r.eval_loss, target) and r.eval_loss <= target),  # type: ignore[operator]
        None,
    )
    upto = record.rounds[: reached.round] if reached else ()
    metrics = next((r.metrics for r in reversed(record.rounds) if r.metrics), {})
    return {
        "name": name,
        "method": record.method,
        "status": record.status,
        "rounds": total.rounds,
        "initial_loss": total.initial_loss,
        "final_loss": total.final_loss,
        "best_loss": total.best_loss,
        "virtual_time_s": total.virtual_time_s,
        "target_loss": target,
        "rounds_to_target": reached.round if reached else None,
        "time_to_target_s": reached.elapsed_s if reached else None,
        "uplink_bits_to_target": sum(r.uplink_bits for r in upto) if reached else None,
        "uplink_bits": total.uplink_bits,
        "downlink_bits": total.downlink_bits,
        "flops": total.flops,
        "energy_j": total.energy_j,
        "mean_gap": total.mean_gap,
        "metrics": dict(metrics),
    }


def differences(records: Mapping[str, Record]) -> list[str]:
    """Return the scenario keys in which the runs differ, as dotted paths."""
    flat = [_flat(record.scenario) for record in records.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    return [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, list):
        values = {str(i): item for i, item in enumerate(values)}
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, item in values.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


MODE_ROUNDS = 12
"""Rounds that the table of modes shows at most, evenly spread."""


@dataclass(frozen=True)
class AssignedModes:
    """What each client was told in some of the rounds."""

    rounds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Per client its name and a text a round."""


def assigned_modes(record: Record) -> AssignedModes | None:
    """Return the clients' modes by round; None where they never differ and no client sat out."""
    everyone = [client for r in record.rounds for client in r.clients if client.status != NOT_DRAWN]
    modes = {(one.local_steps, one.rank, one.bits_per_value) for one in everyone}
    if len(modes) < 2:
        return None
    stride = -(-len(record.rounds) // MODE_ROUNDS)
    shown = record.rounds[::stride]
    names = [client.name for client in shown[-1].clients]
    by_round = [{client.name: client for client in entry.clients} for entry in shown]

    def text(client: ClientRecord | None) -> str:
        if client is None or client.rank is None:
            return NOTHING
        mode = f"{client.local_steps}/{client.rank}/{client.bits_per_value}"
        return f"{mode} {client.binds}" if client.binds else mode

    rows = tuple((name, tuple(text(clients.get(name)) for clients in by_round)) for name in names)
    return AssignedModes(tuple(entry.round for entry in shown), rows)
