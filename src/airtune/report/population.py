"""A record of cohorts made ready for figures with one row a client: those most often drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from airtune.record import ClientRecord, Record

MOST_SHOWN = 40
NOT_DRAWN = "not drawn"
"""The status of a client in a round whose cohort it is not in."""


def has_cohorts(record: Record) -> bool:
    """Return whether not every client took part in every round."""
    return any(r.cohort is not None for r in record.rounds)


def shown_clients(record: Record) -> Record:
    """Return the record of the clients that were most often in a cohort, in the run's order.

    Every round of it has the same clients; one that was not drawn computes and sends nothing
    there. A record without cohorts is returned as it is.
    """
    if not has_cohorts(record):
        return record
    counts = Counter(client.name for r in record.rounds for client in r.clients)
    chosen = {name for name, _ in counts.most_common(MOST_SHOWN)}
    names = [name for name in _in_order(record, counts) if name in chosen]
    rounds = []
    for r in record.rounds:
        own = {client.name: client for client in r.clients}
        clients = tuple(
            own[name] if name in own else ClientRecord.of_nothing(name, NOT_DRAWN) for name in names
        )
        rounds.append(replace(r, clients=clients))
    description = record.description
    if description is not None:
        sites = tuple(site for site in description.clients if site.name in chosen)
        description = replace(description, clients=sites)
    return replace(record, rounds=tuple(rounds), description=description)


def _in_order(record: Record, counts: Counter[str]) -> list[str]:
    if record.description is None:
        return list(counts)
    return [site.name for site in record.description.clients if site.name in counts]


def how_many(record: Record) -> str:
    """Say which clients are shown, where not all of them are."""
    if not has_cohorts(record):
        return ""
    drawn = {client.name for r in record.rounds for client in r.clients}
    if len(drawn) <= MOST_SHOWN:
        return f" Shown are the {len(drawn)} clients that were drawn."
    return f" Shown are the {MOST_SHOWN} clients most often drawn, of {len(drawn):,} that were."
