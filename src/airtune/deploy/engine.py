"""The engine whose clients are real devices: implements `airtune.engines.Engine`.

The round loop stays the one in `airtune.rounds`. What this adds is the messages, a real
clock beside the planned one, deadlines, and the checks that an update from outside has to pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airtune.adapters.names import Adapter
from airtune.deploy.bands import Bands
from airtune.deploy.checks import checked_update
from airtune.deploy.emulation import overran
from airtune.deploy.greetings import Greetings
from airtune.deploy.held import Held, Sending
from airtune.deploy.introductions import Known, planned_steps
from airtune.deploy.meter import LogPosition, WireTimes, end_of_log, read_wire_log, wire_times
from airtune.deploy.presence import is_away
from airtune.deploy.protocol import (
    Privacy,
    ProtocolError,
    Refusal,
    Update,
    job_fields,
    kind_of,
    pack,
    plain,
    unpack,
)
from airtune.deploy.roster import (
    Mailbox,
    Member,
    Reply,
    Roster,
    client_data,
    measured_profile,
)
from airtune.deploy.timings import append_timings, measured_of, planned_of
from airtune.engines import ClientFailure
from airtune.errors import InputError, RunError
from airtune.models.workload import StepTokens
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, ClientUpdate
from airtune.training.worker import Evaluation, Federation, MeasuredCosts, Worker

Outcome = ClientUpdate | ClientFailure


_STALL_S = 5.0
"""So long between two looks at the mailbox, and this process has stood still."""


@dataclass(frozen=True)
class Conditions:
    """How long the server waits, and for whom."""

    devices: int
    """Fewest devices with which a run starts."""
    wait_s: float = 60.0
    """How long it waits for them."""
    slack: float = 3.0
    """A device is late after the plan's round latency times this, plus `engine_s`."""
    engine_s: float = 30.0
    """What Flower itself may add before a device counts as late."""
    longest_s: float = 3600.0
    """No round waits longer than this, whatever its plan says."""
    privacy: Privacy | None = None
    """The largest clipping norm and noise that devices may protect their updates with."""
    poll_s: float = 0.1
    """Between two looks at Flower's mailbox, on this machine."""
    greet_s: float = 2.0
    """Between two looks for devices that are new."""


@dataclass
class _Dispatch:
    """A job on its way."""

    job: ClientJob
    member: Member
    sending: Sending
    sent_s: float


class FlowerEngine:
    """Has devices do the clients' work.

    Args:
        scenario: what to run.
        mailbox: how messages reach devices.
        conditions: deadlines and the fewest devices.
        run: names this run to the devices.
        wire_log: the gateway's log of transfers; without it, transfer times are not known.
        bands: is given each round's band shares, where the network can enforce them.
        timings: where planned and measured times are written, one JSON object a client and round.
        say: called with a line for each device that is ready or was refused.
    """

    def __init__(
        self,
        scenario: Scenario,
        mailbox: Mailbox,
        conditions: Conditions,
        *,
        run: str,
        wire_log: Path | None = None,
        bands: Bands | None = None,
        timings: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if scenario.pruning.refit_every_rounds is not None:
            raise InputError(
                "pruning.refit_every_rounds is for simulated clients: real devices refit to the "
                "model before training alone; leave it out"
            )
        self._scenario, self._mailbox, self._conditions = scenario, mailbox, conditions
        # The server's own copy: evaluation, the first adapter, the adapter's final form.
        self._worker = Worker(scenario)
        federation = self._worker.federation
        labels = frozenset(label for client in federation.clients for label in client.labels)
        known = Known(scenario, self._worker.shape, labels, conditions.privacy)
        self._roster = Roster(known, federation.model_fingerprint, run)
        self._greetings = Greetings(
            mailbox, self._roster, patience_s=conditions.wait_s, welcome=self._welcome, say=say
        )
        # By client: for which round, and the sizes of its steps.
        self._steps: dict[int, tuple[int, tuple[StepTokens, ...]]] = {}
        self._held = Held(scenario)
        self._wire_log, self._bands, self._timings = wire_log, bands, timings
        self._wire_from = LogPosition() if wire_log is None else end_of_log(wire_log)
        self._say, self._gathered = say, False

    def federation(self) -> Federation:
        """Wait for the devices, and describe the clients as they describe themselves.

        Asked again, it describes those that have joined since too.

        They calibrate while they rehearse, before the run and on no clock: nothing is billed.

        Raises:
            RunError: fewer devices than asked for within the time allowed.
        """
        if self._gathered:
            self.present()  # a device that is there by now is planned at its own speed
        else:  # waited for once
            self._gather()
            self._gathered = True
        own = self._worker.federation
        members = [self._roster.members.get(name) for name in self._scenario.client_names]
        return replace(
            own,
            clients=tuple(
                replace(client, calibration_flops=0.0)
                if member is None
                else client_data(member.introduction)
                for client, member in zip(own.clients, members, strict=True)
            ),
            profiles=tuple(
                None if member is None else measured_profile(member.introduction)
                for member in members
            ),
        )

    def initial_adapter(self) -> Adapter:
        """Return the adapter that the first round starts from."""
        return self._worker.initial_adapter()

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the sizes that the device announced for this round, or else those expected.

        A device that was away or sat a round out has announced none; one with privacy never does
        and is planned with full batches.
        """
        member = self._roster.members.get(self._scenario.client_names[client])
        if member is not None and member.introduction.privacy is not None:
            return planned_steps((), self._scenario)
        announced_for, steps = self._steps.get(client, (0, ()))
        return steps if announced_for == round else self._worker.step_tokens(round, client)

    def present(self) -> frozenset[int]:
        """Return the clients whose devices are connected and were introduced.

        New devices are greeted; if there is none else, one of them is waited for.
        """
        self._greetings.send()
        self._collect([])
        if not (found := self._connected()) and self._greetings.pending:
            found = self._await_one()
        return found

    def _connected(self) -> frozenset[int]:
        """Return the clients whose member is online now: one may have gone since it came."""
        online = {node.id for node in self._mailbox.nodes() if node.online}
        members = self._roster.members
        return frozenset(
            client
            for client, name in enumerate(self._scenario.client_names)
            if name in members and members[name].node.id in online
        )

    def holders(self, round: int) -> frozenset[int]:
        """Return the clients whose devices hold the broadcast of the round before, as they said."""
        return self._held.holders(round)

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client whose device has not told, by the server's data."""
        return self._worker.measured_costs(client)

    def evaluate(
        self, adapter: Adapter, *, final: bool = False, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter."""
        return self._worker.evaluate(adapter, final=final, clients=clients)

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self._worker.save_adapter(adapter, folder)

    def close(self) -> None:
        """Lift the band shares; the devices stay."""
        if self._bands is not None:
            self._bands.lift()

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[Outcome]:
        """Send the jobs; yield what comes back until all have answered or are late."""
        names, online = self._scenario.client_names, self.present()
        present: list[tuple[ClientJob, Member]] = []
        for job in jobs:
            if job.client not in online or is_away(job.assignment):
                yield ClientFailure(job.client, "not connected", after_s=0.0)
            else:
                present.append((job, self._roster.members[names[job.client]]))
        if present:
            yield from self._exchange(present)

    def _exchange(self, present: list[tuple[ClientJob, Member]]) -> Iterator[Outcome]:
        if self._bands is not None:
            names = self._scenario.client_names
            self._bands.grant({names[job.client]: job.assignment for job, _ in present})
        by_node = {
            member.node.id: (job, member, self._held.sending(job)) for job, member in present
        }
        bodies = {node: self._job_body(job, own) for node, (job, _, own) in by_node.items()}
        if self._wire_log is not None:
            self._wire_from = end_of_log(self._wire_log)
        sent_s = time.time()
        posted = self._mailbox.send(bodies, group=str(present[0][0].round))
        pending = {message: _Dispatch(*by_node[node], sent_s) for message, node in posted.items()}
        for node in by_node.keys() - set(posted.values()):
            yield ClientFailure(by_node[node][0].client, "not sent: Flower took no message")
        deadline_s, greeted_s = sent_s + self._patience_s(present[0][0]), sent_s
        looked_s = time.time()
        while pending:
            # While this process stood still no device could be late.
            now_s = time.time()
            deadline_s += max(0.0, now_s - looked_s - _STALL_S)
            looked_s = now_s
            for reply in self._collect(pending):
                yield self._outcome(pending.pop(reply.message), reply)
            if not pending or now_s >= deadline_s:
                break
            if now_s > greeted_s + self._conditions.greet_s:
                self._greetings.send()
                greeted_s = now_s
            time.sleep(self._conditions.poll_s)
        for dispatch in pending.values():
            waited_s = time.time() - sent_s
            reason = f"late: no answer within {waited_s:.1f} s"
            yield ClientFailure(dispatch.job.client, reason, after_s=waited_s)

    def _patience_s(self, job: ClientJob) -> float:
        conditions = self._conditions
        planned_s = conditions.slack * planned_of(job).round_s + conditions.engine_s
        return min(planned_s, conditions.longest_s)

    def _job_body(self, job: ClientJob, sending: Sending) -> bytes:
        run, bits = self._roster.run, self._held.bits
        fields = job_fields(run, job.round, job.assignment, bits, sending.base)
        return pack(fields, sending.arrays)

    def _outcome(self, dispatch: _Dispatch, reply: Reply) -> Outcome:
        # Several arrive together, and each takes a while to check: that is no device's time.
        job, arrived_s = dispatch.job, reply.arrived_s or time.time()
        after_s = arrived_s - dispatch.sent_s

        def failed(reason: str) -> ClientFailure:
            return ClientFailure(job.client, plain(reason)[:500], after_s=after_s)

        if reply.body is None:
            # A device that was away is greeted again: it may have lost its run.
            self._roster.members.pop(self._scenario.client_names[job.client], None)
            return failed(reply.error)
        try:
            if kind_of(reply.body) == Refusal.model_fields["kind"].default:
                self._roster.members.pop(self._scenario.client_names[job.client], None)
                return failed(f"refused: {unpack(reply.body, Refusal)[0].reason}")
            fields, arrays = unpack(reply.body, Update)
            update = checked_update(
                fields,
                arrays,
                job=job,
                own=dispatch.member.introduction,
                run=self._roster.run,
                scenario=self._scenario,
                shape=self._worker.shape,
                steps=self.step_tokens(job.round, job.client),
                waited_s=after_s,
                sending=dispatch.sending,
            )
        except (ProtocolError, InputError) as error:
            return failed(f"rejected: {error}")
        except Exception as error:  # a fault of the checks must not end the run either
            return failed(f"rejected: it cannot be checked: {type(error).__name__}: {error}")
        self._held.keep(job, dispatch.sending)
        announced = planned_steps(fields.next_steps, self._scenario)
        self._steps[job.client] = (job.round + 1, announced)
        wire = self._wire_of(dispatch)
        measured = measured_of(job, fields, wire, after_s)
        if self._timings is not None:
            planned = planned_of(job)
            append_timings(
                self._timings, job, planned, fields, wire, measured, after_s, dispatch.sent_s
            )
        if overran(fields.compute_s, fields.emulated_s):
            self._say(
                f"{fields.client}: the work took {fields.compute_s:.2f} s, more than the "
                f"{fields.emulated_s:.2f} s of the device that it emulates: its times do not count"
            )
        return replace(update, measured=measured)

    def _gather(self) -> None:
        conditions = self._conditions
        wanted = set(self._scenario.client_names)
        deadline_s = time.time() + conditions.wait_s
        while True:
            self._greetings.send()
            self._collect([])
            if wanted <= self._roster.members.keys():
                return
            if time.time() >= deadline_s:
                break
            time.sleep(conditions.poll_s)
        present = len(self._roster.members)
        if present >= conditions.devices:
            return
        missing = ", ".join(sorted(wanted - self._roster.members.keys()))
        refused = "; ".join(dict.fromkeys(self._roster.refused.values()))
        raise RunError(
            f"{present} of {conditions.devices} devices ready within {conditions.wait_s:g} s; "
            f"missing: {missing}" + (f"; refused: {refused}" if refused else "")
        )

    def _await_one(self) -> frozenset[int]:
        """Wait until one of the greeted devices takes part, and return it: a round needs one."""
        deadline_s, found = time.time() + self._conditions.wait_s, frozenset[int]()
        while not found and self._greetings.pending and time.time() < deadline_s:
            time.sleep(self._conditions.poll_s)
            self._collect([])
            found = self._connected()
        return found

    def _collect(self, messages: Iterable[str]) -> list[Reply]:
        """Return the answers to these messages; those to greetings are taken on the way."""
        replies = self._mailbox.collect([*messages, *self._greetings.pending])
        return [reply for reply in replies if not self._greetings.answered(reply)]

    def _welcome(self, node_id: int) -> None:
        for client, name in enumerate(self._scenario.client_names):
            member = self._roster.members.get(name)
            if member is not None and member.node.id == node_id:
                own = member.introduction
                self._steps[client] = (1, planned_steps(own.next_steps, self._scenario))
                self._say(f"{name} is ready: {own.effective_flops:.3g} FLOP/s")

    def _wire_of(self, dispatch: _Dispatch) -> WireTimes | None:
        if self._wire_log is None:
            return None
        # The gateway writes a transfer's line a moment after its last byte.
        for _ in range(10):
            lines, _ = read_wire_log(self._wire_log, self._wire_from)
            found = wire_times(lines, dispatch.sent_s).get(dispatch.member.node.key)
            if found is not None:
                return found
            time.sleep(0.05)
        return None
