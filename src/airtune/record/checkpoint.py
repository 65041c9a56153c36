"""The state to resume from: safetensors and JSON, with the hashes of both; never pickle.

A checkpoint is a folder `round-00007` that appears by a rename once all of it is on the
device. The last two are kept, so that a damaged one has one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from airtune.record.files import TEMPORARY, explained, flush_folder, write_flushed
from airtune.record.schema import dump_json

FORMAT = 1
KEPT = 2
TENSORS, STATE = "state.safetensors", "state.json"
_NAME = re.compile(r"round-(\d{5,})")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: the round that it was saved after.
        tensors: arrays by name.
        payload: the rest of the state, in JSON's types.
    """

    round: int
    tensors: Mapping[str, np.ndarray]
    payload: Mapping[str, Any]


class Damaged(ValueError):
    """A checkpoint cannot be used; the message says why."""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into `folder` and drop all but the last two.

    Raises:
        RunError: it cannot be written; the ones before it are untouched.
    """
    target = folder / f"round-{checkpoint.round:05d}"
    temporary = folder / f"{TEMPORARY}{target.name}"
    # order="C" and not ascontiguousarray, which would make scalars one-dimensional.
    arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.tensors.items()}
    tensors = safetensors.numpy.save(arrays)
    payload = dump_json(checkpoint.payload)
    state = dump_json(
        {
            "format": FORMAT,
            "round": checkpoint.round,
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            "payload_sha256": hashlib.sha256(payload.encode()).hexdigest(),
            "payload": json.loads(payload),
        }
    ).encode()
    with explained(target, len(tensors) + len(state)):
        try:
            folder.mkdir(exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write_flushed(temporary / TENSORS, tensors)
            write_flushed(temporary / STATE, state)
            flush_folder(temporary)
            if target.exists():
                shutil.rmtree(target)
            os.rename(temporary, target)
        except OSError:
            with suppress(OSError):
                shutil.rmtree(temporary)
            raise
        flush_folder(folder)
        for round in saved_rounds(folder)[:-KEPT]:
            shutil.rmtree(folder / f"round-{round:05d}")


def saved_rounds(folder: Path) -> list[int]:
    """Return the rounds of which a checkpoint lies in `folder`, ascending, usable or not."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def load(folder: Path, round: int) -> Checkpoint:
    """Read the checkpoint of a round; raises `Damaged` where a part is missing or altered."""
    source = folder / f"round-{round:05d}"
    try:
        state = json.loads((source / STATE).read_bytes())
        tensors = (source / TENSORS).read_bytes()
    except OSError as error:
        raise Damaged(f"{error.strerror}: {Path(str(error.filename)).name}") from None
    except ValueError:
        raise Damaged(f"{STATE} is cut short or not JSON") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("round") != round:
        raise Damaged(f"{STATE} is not of this format")
    payload = dump_json(state.get("payload")).encode()
    for name, data in (("tensors", tensors), ("payload", payload)):
        if hashlib.sha256(data).hexdigest() != state.get(f"{name}_sha256"):
            raise Damaged(f"the {name} do not match their checksum (cut short or altered)")
    return Checkpoint(round, safetensors.numpy.load(tensors), state["payload"])


def drop_after(folder: Path, round: int) -> None:
    """Remove the checkpoints of later rounds and what a kill left half written.

    Raises:
        RunError: they cannot be removed.
    """
    if not folder.is_dir():
        return
    with explained(folder, 0):
        for entry in folder.iterdir():
            match = _NAME.fullmatch(entry.name)
            if entry.name.startswith(TEMPORARY) or (match and int(match[1]) > round):
                _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink()
