"""Optimiser moments of a population on disk: a file a client, of which one is read at a time.

A file is named by the client and by the round after which it was written, and never changed. A
state names the file of each client, so that an earlier state still finds its own: the three newest
files of a client are kept, for the two newest checkpoints and for the one that is written next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from airtune.errors import RunError
from airtune.record.files import explained, write_durably
from airtune.training.client import OptimizerState

KEPT = 3


@dataclass(frozen=True)
class StoredMoments(Mapping[int, OptimizerState]):
    """The moments of those clients that have some, by client.

    Attributes:
        folder: where the files lie.
        written: after which round each client's newest file was written.
    """

    folder: Path
    written: Mapping[int, int]

    def __getitem__(self, client: int) -> OptimizerState:
        path = self._file(client, self.written[client])
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"'{path}', a client's optimiser moments, cannot be read: {error}; begin anew "
                "with --replace"
            ) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self.written)

    def __len__(self) -> int:
        return len(self.written)

    def after(self, round: int, new: Mapping[int, OptimizerState]) -> StoredMoments:
        """Write the moments that clients have after a round, and return the state with them.

        Raises:
            RunError: they cannot be written.
        """
        with explained(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
        for client, moments in new.items():
            contiguous = {name: value.contiguous() for name, value in moments.items()}
            write_durably(self._file(client, round), safetensors.torch.save(contiguous))
            self._drop_old(client, round)
        return StoredMoments(self.folder, {**self.written, **dict.fromkeys(new, round)})

    def _file(self, client: int, round: int) -> Path:
        return self.folder / f"{client:06d}-{round:06d}.safetensors"

    def _drop_old(self, client: int, newest: int) -> None:
        """Remove all but the newest files of a client, and those of later rounds done again."""
        found = {int(p.stem.split("-")[1]): p for p in self.folder.glob(f"{client:06d}-*")}
        kept = sorted(round for round in found if round <= newest)[-KEPT:]
        for round, path in found.items():
            if round not in kept:
                path.unlink(missing_ok=True)


def moments_after(
    before: Mapping[int, OptimizerState], round: int, new: Mapping[int, OptimizerState]
) -> Mapping[int, OptimizerState]:
    """Return the moments after a round: on disk where they were there before, else in memory."""
    if isinstance(before, StoredMoments):
        return before.after(round, new)
    return {**before, **new}
