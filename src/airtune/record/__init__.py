"""The run directory: what a run leaves on disk, written so that nothing recorded is lost.

`schema` says what is recorded, `directory` writes it while a run goes on, `checkpoint` keeps
the state to resume from, `files` holds the habits of writing safely, `reading` reads it back.
The format is described field by field in docs/record.md.
"""

from __future__ import annotations

from airtune.record.checkpoint import Checkpoint
from airtune.record.directory import RunDirectory
from airtune.record.reading import Record, read_record
from airtune.record.schema import (
    ClientRecord,
    ClientSite,
    RoundRecord,
    RunDescription,
    TurnRecord,
    json_line,
)

__all__ = [
    "Checkpoint",
    "ClientRecord",
    "ClientSite",
    "Record",
    "RoundRecord",
    "RunDescription",
    "RunDirectory",
    "TurnRecord",
    "json_line",
    "read_record",
]
