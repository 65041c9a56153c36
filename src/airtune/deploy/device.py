"""What a device does with the server's messages: introduce itself, cut, train, answer.

It lives in the resident worker, so that the model, the calibration and AdamW's moments stay
between rounds. Whatever goes wrong becomes a refusal with its reason: no message ends it.
"""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import gather_adapter
from airtune.assignment import Assignment
from airtune.deploy import privacy as dp
from airtune.deploy.codec import (
    adapter_of,
    adapter_sha256,
    changed_adapter,
    layout_of,
    structure_array,
    trained,
    update_arrays,
)
from airtune.deploy.emulation import Emulated
from airtune.deploy.pacing import Pacer
from airtune.deploy.protocol import (
    PROTOCOL,
    Arrays,
    Fields,
    Hello,
    Introduction,
    Job,
    Privacy,
    ProtocolError,
    Refusal,
    Step,
    Update,
    agreement,
    assignment_of,
    disagreement,
    kept_pairs,
    kind_of,
    pack,
    plain,
    unpack,
)
from airtune.errors import InputError, RunError, first_of
from airtune.merging.rules import check_deployable
from airtune.models.devices import profile_of
from airtune.models.workload import StepTokens, full_sizes, training_flops
from airtune.planning.inputs import full_steps, modes_of
from airtune.randomness import derived_seed
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, OptimizerState
from airtune.training.worker import Worker


class Device:
    """One client of the scenario, on its own machine.

    Args:
        scenario: this device's copy; the server's has to agree with it.
        client: the scenario's client whose data this device holds.
        pacer: holds the upload to the planned rate.
        folder: where the device remembers what privacy it has spent.
        privacy: clip and noise before anything leaves, or None.
        emulated: take the time of another device, or None.

    Raises:
        InputError: no such client, or the scenario cannot be combined with privacy.
    """

    def __init__(
        self,
        scenario: Scenario,
        client: str,
        pacer: Pacer,
        folder: Path,
        privacy: Privacy | None = None,
        emulated: Emulated | None = None,
    ) -> None:
        if client not in scenario.client_names:
            raise InputError(
                f"client '{client}' is not in scenario '{scenario.name}': its "
                f"{len(scenario.client_names):,} clients are {first_of(scenario.client_names)}"
            )
        check_deployable(scenario)
        if privacy is not None:
            dp.require_private_scenario(scenario)
        self._scenario, self._client, self._pacer = scenario, client, pacer
        self._index = scenario.client_names.index(client)
        self._privacy, self._ledger = privacy, folder / "privacy.json"
        if privacy is not None:
            dp.read_ledger(self._ledger)  # a refusal at the start, not in the first round
        self._emulated = emulated
        # The curves of the other clients, which their own devices measure, are not needed here.
        unmeasured = scenario.pruning.model_copy(update={"cost": "linear"})
        self._worker = Worker(scenario.model_copy(update={"pruning": unmeasured}))
        self._initial = self._worker.initial_adapter()
        self._run: str | None = None
        self._moments: OptimizerState | None = None
        self._introduction: Introduction | None = None
        # The round's adapter as it reached this device, where changes of it are sent.
        self._held: tuple[int, Adapter] | None = None

    def handle(self, body: bytes) -> bytes:
        """Answer one message; never raises."""
        begin_s = time.perf_counter()
        try:
            kind = kind_of(body)
            if kind == "hello":
                return pack(self._hello(unpack(body, Hello)[0]))
            if kind == "job":
                fields, arrays = unpack(body, Job)
                return self._train(fields, arrays, begin_s)
            return _refusal(f"a message of kind '{kind}' is not for devices")
        except (ProtocolError, InputError, RunError) as error:
            return _refusal(str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)  # for the device's operator
            if self._privacy is not None:  # a message may quote the data
                return _refusal(f"{type(error).__name__}: see this device's own log")
            lines = str(error).strip().splitlines()
            return _refusal(f"{type(error).__name__}: {lines[0] if lines else ''}")

    def _hello(self, hello: Hello) -> Fields:
        if hello.protocol != PROTOCOL:
            return Refusal(
                reason=f"version mismatch: the server speaks protocol {hello.protocol} (airtune "
                f"{hello.version}), this device {PROTOCOL} (airtune "
                f"{version('airtune')}); install the same airtune on both"
            )
        difference = disagreement(agreement(self._scenario), hello.scenario)
        if difference is not None:
            return Refusal(reason=f"the scenarios differ: {difference}")
        if self._privacy is not None:
            # Raises where the budget is used up: a device that can train no more must not be
            # planned with a share of the band.
            dp.next_ledger(self._ledger, self._privacy)
        if self._run != hello.run or self._introduction is None:
            self._run, self._moments, self._held = hello.run, None, None
            self._introduction = self._introduced()
        return self._introduction

    def _introduced(self) -> Introduction:
        federation = self._worker.federation
        own = federation.clients[self._index]
        profile = profile_of(self._scenario.client_devices[self._index])
        if self._emulated is not None:
            profile = self._emulated.profile
        private, curve, kept = self._privacy is not None, None, None
        if self._scenario.pruning.cost == "measured":
            curve, kept = self._worker.measured_costs(self._index)
        return Introduction(
            protocol=PROTOCOL,
            version=version("airtune"),
            client=self._client,
            model_fingerprint=federation.model_fingerprint,
            examples=own.examples,
            labels={} if private else own.labels,
            pruning_cost=None if curve is None else list(curve),
            most_pruned=None if kept is None else kept_pairs(kept),
            profile=profile.name,
            effective_flops=self._measured_speed(),
            memory_bytes=profile.memory_bytes,
            next_steps=self._steps(1),
            privacy=self._privacy,
        )

    def _measured_speed(self) -> float:
        """Return FLOP/s over a rehearsed round: cut, refit and all its local steps.

        The plan counts the FLOPs of training alone; measured so, the time of cutting is in the
        speed. The first rehearsal calibrates and warms up; both updates are lost.
        """
        job = ClientJob(
            round=1,
            assignment=Assignment(
                client=self._index,
                mode=modes_of(self._scenario)[self._index],
                pruning=self._scenario.pruning.max_pruning / 2,
                bandwidth_hz=0.0,  # nothing of a rehearsal is sent
                rate_bps=0.0,
                downlink_rate_bps=0.0,
                downlink_bits=0.0,
            ),
            adapter=self._worker.initial_adapter(),
        )
        self._worker.train(job)
        if self._emulated is not None:
            return self._emulated.profile.effective_flops
        begin = time.perf_counter()
        update = self._worker.train(job)
        flops = update.flops
        if self._privacy is not None:  # counted for full batches, as the server will plan
            flops = sum(self._full_flops(step) for step in self._full_steps())
        return flops / (time.perf_counter() - begin)

    def _full_steps(self) -> tuple[StepTokens, ...]:
        return full_steps(self._scenario.training, self._scenario.task.max_tokens)

    def _full_flops(self, step: StepTokens) -> float:
        shape, mode = self._worker.shape, modes_of(self._scenario)[self._index]
        return training_flops(shape, full_sizes(shape), step, mode)

    def _steps(self, round: int) -> list[Step]:
        if self._privacy is not None:
            return []
        return [
            Step(rows=step.rows, length=step.length, label_tokens=step.label_tokens)
            for step in self._worker.step_tokens(round, self._index)
        ]

    def _train(self, job: Job, arrays: Arrays, begin_s: float) -> bytes:
        if job.run != self._run:
            return _refusal(f"run {job.run} has not introduced itself to this device")
        assigned = assignment_of(job, self._index)
        known = leading(self._initial, assigned.mode.rank)
        began = self._arrived(job, arrays, trained(known, assigned.mode))
        # What is not sent is as it began at both ends.
        adapter = known | began
        if self._privacy is not None and job.pruning > 0:
            return _refusal("privacy needs pruning = 0: the choice of units tells of the text")
        spent = None if self._privacy is None else dp.spend(self._ledger, self._privacy)
        update = self._worker.train(
            ClientJob(
                round=job.round,
                # The change is rounded on its way, below.
                assignment=replace(assigned, mode=replace(assigned.mode, bits_per_scale=0)),
                adapter=adapter,
                optimizer_state=self._moments,
            )
        )
        before = trained(
            gather_adapter(adapter, update.structure, self._worker.shape), assigned.mode
        )
        after = self._protected(before, trained(update.adapter, assigned.mode))
        seed = derived_seed(self._scenario.seed, "rounding", round=job.round, client=self._index)
        values = update_arrays(before, after, assigned.mode, seed=seed)
        self._moments = update.optimizer_state
        next_steps = self._steps(job.round + 1)
        held = self._emulated
        emulated_s = None if held is None else held.hold(begin_s, update.flops)
        fields = Update(
            run=job.run,
            round=job.round,
            client=self._client,
            examples=update.examples,
            train_loss=None if self._privacy is not None else update.train_loss,
            compute_s=time.perf_counter() - begin_s,
            next_steps=next_steps,
            epsilon=spent,
            emulated_s=emulated_s,
            held_sha256=None if job.change_bits is None else adapter_sha256(began),
        )
        kept = structure_array(update.structure, self._worker.shape)
        self._pacer.grant(job.uplink_bps)
        return pack(fields, values | kept)

    def _arrived(self, job: Job, arrays: Arrays, known: Adapter) -> Adapter:
        """Return the trained entries that a job brings: all of them, or those held, changed."""
        if job.base is None:
            began = adapter_of(arrays, layout_of(known))
        elif job.change_bits is None:
            raise ProtocolError("a change without its bits")
        else:
            round, held = self._held or (0, {})
            base = leading(held, job.rank)
            if round != job.base.round or adapter_sha256(base) != job.base.sha256:
                raise ProtocolError(
                    f"this device does not hold the adapter of round {job.base.round}, whose "
                    "change it was sent"
                )
            began = changed_adapter(arrays, base, job.change_bits)
        if job.change_bits is not None:
            self._held = (job.round, began)
        return began

    def _protected(self, before: Adapter, after: Adapter) -> Adapter:
        if self._privacy is None:
            return after
        import torch

        noised = dp.privatise(
            {name: value.numpy() for name, value in before.items()},
            {name: value.numpy() for name, value in after.items()},
            clip=self._privacy.clip,
            noise_multiplier=self._privacy.noise_multiplier,
        )
        return {name: torch.from_numpy(value) for name, value in noised.items()}


def _refusal(reason: str) -> bytes:
    return pack(Refusal(reason=plain(reason)[:2000] or "refused"))
