"""What each device holds of the last broadcast, where changes of it are sent in few bits.

The server computes beside every device what the message makes of that device's adapter, in the
precision in which it was sent. A device holds it from the moment that it has answered the round's
job with the hash of it. A device that was away or late, sat the round out or was refused gets the
whole adapter next time.
"""

from __future__ import annotations

from dataclasses import dataclass

from airtune.adapters.few_bits import Change
from airtune.adapters.names import Adapter, leading
from airtune.deploy.codec import (
    adapter_arrays,
    adapter_of,
    adapter_sha256,
    change_arrays,
    layout_of,
    trained,
)
from airtune.deploy.protocol import Arrays, Base
from airtune.scenario import Scenario
from airtune.training.client import ClientJob


@dataclass(frozen=True, eq=False)
class Sending:
    """What a job carries, and what the device then begins with.

    Attributes:
        arrays: of the message.
        base: whose change they are; None: they are the whole adapter.
        began: the trained entries of the full model, at the job's rank, as they reach the device.
        sha256: of `began`, where the device has to tell it; None where no changes are sent.
    """

    arrays: Arrays
    base: Base | None
    began: Adapter
    sha256: str | None


class Held:
    """What the devices of a run hold.

    Args:
        scenario: says in how many bits changes are sent, and in which precision the whole.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.bits = scenario.aggregation.downlink_change_bits
        self._whole_bits = scenario.aggregation.payload_bits_per_value
        self._by_client: dict[int, tuple[int, Adapter]] = {}

    def holders(self, round: int) -> frozenset[int]:
        """Return the clients that hold the broadcast of the round before `round`."""
        return frozenset(k for k, (held, _) in self._by_client.items() if held == round - 1)

    def sending(self, job: ClientJob) -> Sending:
        """Return what a job carries: the change where the device holds its base, or the whole."""
        base = self._base_of(job)
        if base is None or job.change is None:
            mode = job.assignment.mode
            whole = trained(leading(job.adapter, mode.rank), mode)
            arrays = adapter_arrays(whole, self._whole_bits)
            return self._sending(arrays, None, adapter_of(arrays, layout_of(whole)))
        change = Change(
            job.change.bits,
            {name: job.change.codes[name] for name in base},
            {name: job.change.scales[name] for name in base},
        )
        told = Base(round=job.round - 1, sha256=adapter_sha256(base))
        return self._sending(change_arrays(change), told, change.onto(base))

    def keep(self, job: ClientJob, sending: Sending) -> None:
        """Note that the device has answered a job, and so holds what it began with."""
        if self.bits is not None:
            # What an earlier round left is of no more use: memory follows the cohort.
            kept = {k: one for k, one in self._by_client.items() if one[0] >= job.round - 1}
            self._by_client = kept | {job.client: (job.round, sending.began)}

    def _base_of(self, job: ClientJob) -> Adapter | None:
        """Return what the device holds of the change's base, at the job's rank."""
        round, held = self._by_client.get(job.client, (-1, {}))
        rank = job.assignment.mode.rank
        if job.change is None or round != job.round - 1 or _ranks(held) < rank:
            return None
        return leading(held, rank)

    def _sending(self, arrays: Arrays, base: Base | None, began: Adapter) -> Sending:
        sha256 = None if self.bits is None else adapter_sha256(began)
        return Sending(arrays, base, began, sha256)


def _ranks(adapter: Adapter) -> int:
    """Return the rank of an adapter, also of one without A."""
    name, value = next(iter(adapter.items()))
    return int(value.shape[0 if name.endswith("lora_A.weight") else 1])
