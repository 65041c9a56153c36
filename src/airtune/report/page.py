"""A run as one HTML page that needs nothing else: no network, no folder beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from airtune.record import Record, read_record
from airtune.record.files import write_durably
from airtune.report import figures, numbers
from airtune.report.cellmap import cell_map, data_shares
from airtune.report.overlaps import overlaps
from airtune.report.population import has_cohorts, how_many, shown_clients
from airtune.report.summary import (
    ClientSummary,
    assigned_modes,
    client_summaries,
    headline,
    is_left_out,
    last_client,
    loss_of_a_guess,
    totals,
)
from airtune.scenario.overrides import toml_value

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write report.html into a run directory and return its path.

    Raises:
        InputError: there is no run in the folder.
        RunError: the page cannot be written.
    """
    record = read_record(folder)
    target = Path(folder) / REPORT
    write_durably(target, render_run(record).encode())
    return target


def render_run(record: Record) -> str:
    """Return the page of one run."""
    has_rounds = bool(record.rounds)
    shown = shown_clients(record)
    clients = _numbered(client_summaries(record), shown)
    overlapping = overlaps(shown)
    return render(
        "run.html.j2",
        record=record,
        title=f"{record.scenario.get('name', 'run')} · {record.method}",
        headline=headline(record),
        remarks=[text for text in (record.loss, loss_of_a_guess(record)) if text],
        cards=_cards(record),
        learning=present(
            figures.loss_over_time(record) if has_rounds else None,
            figures.loss_over_rounds(record) if has_rounds else None,
            figures.metrics_over_rounds(record),
        ),
        time=present(
            figures.latency(record) if has_rounds else None,
            None if overlapping or not has_rounds else figures.timeline(record),
            overlapping,
        ),
        plan=present(
            figures.pruning_map(shown) if has_rounds else None,
            figures.bandwidth_map(shown) if has_rounds else None,
            figures.gap_over_rounds(record),
        ),
        place=present(cell_map(shown), data_shares(shown)),
        how_many=how_many(record),
        clients=clients,
        assigned=assigned_modes(shown),
        sat_out=any(client.sat_out for client in clients),
        units={
            "band": numbers.common_unit((c.bandwidth_hz for c in clients), "Hz"),
            "rate": numbers.common_unit((c.rate_bps or 0.0 for c in clients), "bit/s"),
            "uplink": numbers.common_unit((c.uplink_bits for c in clients), "bit"),
            "flops": numbers.common_unit((c.flops for c in clients), "FLOP"),
        },
        certificate=_certificate(record),
        left_out=_left_out(record),
        data=_script_data(record),
        scenario_toml=toml_text(record.scenario),
        totals=totals(record),
    )


def _numbered(clients: list[ClientSummary], shown: Record) -> list[ClientSummary]:
    """Return the summaries of the clients that are shown, numbered as on the map."""
    if not has_cohorts(shown):
        return clients
    names = {client.name for client in shown.rounds[-1].clients}
    chosen = [client for client in clients if client.name in names]
    return [replace(client, number=k) for k, client in enumerate(chosen, start=1)]


def render(template: str, **values: Any) -> str:
    """Fill a template; unknown names are errors and text is escaped."""
    environment = Environment(
        loader=PackageLoader("airtune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        digits=numbers.digits,
        duration=numbers.duration,
        seconds=numbers.seconds,
        scaled=numbers.scaled,
        loss=numbers.loss,
        percent=numbers.percent,
        gap=numbers.gap,
    )
    return environment.get_template(template).render(**values)


def present(*drawn: figures.Figure | None) -> list[figures.Figure]:
    """Return the figures that the record has something for."""
    return [figure for figure in drawn if figure is not None]


def _cards(record: Record) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the figures that matter most."""
    total = totals(record)
    if not total.rounds:
        return []
    cards = []
    remark = ""
    if total.none_time_s is not None and total.virtual_time_s and record.method != "none":
        times = numbers.digits(total.none_time_s / total.virtual_time_s, 2)
        remark = f"{numbers.seconds(total.none_time_s)} under none: {times} × as long"
    if total.setup_s:
        remark += "; " if remark else ""
        remark += f"calibration took the first {numbers.seconds(total.setup_s)}"
    clock = "Virtual time" if total.engine_s is None else "Measured time"
    cards.append((clock, numbers.seconds(total.virtual_time_s), remark))
    if total.final_loss is not None:
        remark = ""
        if total.initial_loss is not None:
            remark = f"from {numbers.loss(total.initial_loss)} before training"
        cards.append(("Test loss", numbers.loss(total.final_loss), remark))
    cards += _metric_cards(record)
    each = total.uplink_bits / total.updates if total.updates else None
    remark = f"{numbers.scaled(each, 'bit')} an update"
    cards.append(("Uplink", numbers.scaled(total.uplink_bits, "bit"), remark))
    how = "to each client" if record.rounds[-1].turns else "broadcast"
    remark = f"{numbers.scaled(total.downlink_bits / total.rounds, 'bit')} a round, {how}"
    cards.append(("Downlink", numbers.scaled(total.downlink_bits, "bit"), remark))
    remark = "calibration and fine-tuning" if total.setup_s else "fine-tuning"
    remark += ", all clients"
    cards.append(("Compute", numbers.scaled(total.flops, "FLOP"), remark))
    if total.energy_j is not None:
        cards.append(("Energy", numbers.scaled(total.energy_j, "J"), "devices, all rounds"))
    if total.mean_gap is not None:
        remark = f"mean {numbers.gap(total.mean_gap)}"
        cards.append(("Worst gap of a plan", numbers.gap(total.worst_gap), remark))
    out = total.updates - total.merged
    remark = "every update merged" if not out else f"{out:,} left out"
    if total.lost:
        remark += f", {total.lost:,} of them lost on the air"
    cards.append(("Updates merged", f"{total.merged:,} of {total.updates:,}", remark))
    return cards + _refit_cards(record) + _cohort_cards(record)


def _refit_cards(record: Record) -> list[tuple[str, str, str]]:
    """Return how long reading calibration text again took, where a run did so."""
    read = [r.refit_s for r in record.rounds if r.refit_s]
    if not read:
        return []
    remark = f"in {numbers.counted(len(read), 'round')}, before the clients trained"
    return [("Text read again", numbers.seconds(sum(read)), remark)]


def _cohort_cards(record: Record) -> list[tuple[str, str, str]]:
    """Return the cohort's size and how long rounds waited for it, where there were cohorts."""
    sizes = [r.cohort for r in record.rounds if r.cohort is not None]
    if not sizes:
        return []
    drawn = {client.name for r in record.rounds for client in r.clients}
    of = "" if record.description is None else f" of {len(record.description.clients):,}"
    size = str(sizes[0]) if min(sizes) == max(sizes) else f"{min(sizes):,}–{max(sizes):,}"
    cards = [("Cohort", size + of, f"{len(drawn):,} different clients in all rounds")]
    waits = [r.waited_s for r in record.rounds if r.waited_s]
    if waits:
        remark = f"{numbers.counted(len(waits), 'round')} waited for enough clients"
        cards.append(("Waiting", numbers.seconds(sum(waits)), remark))
    return cards


def _metric_cards(record: Record) -> list[tuple[str, str, str]]:
    initial = record.description.initial_metrics if record.description else {}
    cards = []
    for name in dict.fromkeys(name for r in record.rounds for name in r.metrics):
        last = next((r.metrics[name] for r in reversed(record.rounds) if name in r.metrics), None)
        remark = f"from {numbers.digits(initial[name])}" if name in initial else ""
        cards.append((name.replace("_", " ").capitalize(), numbers.digits(last), remark))
    for name, value in record.results.items():
        if isinstance(value, int | float) and not any(name in r.metrics for r in record.rounds):
            text = numbers.digits(value)
            cards.append((name.replace("_", " ").capitalize(), text, "at the end of the run"))
    return cards


def _certificate(record: Record) -> str:
    total = totals(record)
    if not record.rounds:
        return ""
    if total.worst_gap is None:
        return "The method gives no lower bound, so its plans have no certificate."
    if total.worst_gap < 1e-4:
        worst = numbers.gap(total.worst_gap).removeprefix("< ")
        return (
            f"Certificate: in every round the plan's objective is within {worst} of a proven "
            "lower bound. No other plan could have been better by more."
        )
    return (
        "Certificate: against a proven lower bound, no other plan could have been better by "
        f"more than {numbers.gap(total.worst_gap)} in any round "
        f"({numbers.gap(total.mean_gap)} on average)."
    )


def _left_out(record: Record) -> list[tuple[int, str, str]]:
    return [
        (r.round, client.name, client.status)
        for r in record.rounds
        for client in r.clients
        if is_left_out(client)
    ]


def _script_data(record: Record) -> Markup:
    """Return what the timeline's script draws from, safe inside a script element."""
    data = {
        "rounds": figures.timeline_data(record),
        "names": [client.name for client in record.rounds[-1].clients] if record.rounds else [],
        # Of each round, where cohorts differ.
        "cohorts": [[client.name for client in r.clients] for r in record.rounds]
        if has_cohorts(record)
        else [],
        "last": [last_client(r.clients) for r in record.rounds],
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def toml_text(values: Any) -> str:
    """Return a scenario's plain values as TOML, ready to be run again."""
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    arrays = {
        k: v for k, v in values.items() if isinstance(v, list) and v and isinstance(v[0], dict)
    }
    lines = _toml_keys({k: v for k, v in values.items() if k not in tables and k not in arrays})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_toml_keys(table)]
    for name, items in arrays.items():
        for item in items:
            lines += ["", f"[[{name}]]", *_toml_keys(item)]
    return "\n".join(lines)


def _toml_keys(table: dict[str, Any]) -> list[str]:
    # TOML has no null: a key that was not set is left out.
    return [f"{key} = {toml_value(value)}" for key, value in table.items() if value is not None]
