"""One process that can do any client's work: the base model once, each client's data by index.

Everything here follows from the scenario alone, so that any engine can build a worker
anywhere and get the same answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial

import torch
from peft import LoraConfig

from airtune.adapters.few_bits import rounded_change
from airtune.adapters.lora import (
    adapted,
    lora_config,
    merged_into_base,
    save_adapter,
    values_of,
)
from airtune.adapters.names import Adapter, leading, rank_of
from airtune.adapters.slices import gather_adapter
from airtune.data import (
    Batch,
    Encoded,
    encode,
    eval_batches,
    load_task,
    local_batches,
    partition,
    text_fingerprint,
)
from airtune.data.partition import holders_of
from airtune.merging.rules import rule_of
from airtune.models import assets
from airtune.models.loading import load_model, longest_text
from airtune.models.precision import speed_up_attention
from airtune.models.reference import base_reference
from airtune.models.structure import Structure, whole
from airtune.models.workload import (
    KeptSizes,
    StepTokens,
    calibration_flops,
    payload_bits,
    realised_pruning,
    rereading_flops,
    training_flops,
)
from airtune.pruning import Statistics, cached_calibration, calibrate, choose, cost_curve
from airtune.pruning.calibration import SENSITIVITY_ROWS
from airtune.pruning.selection import selection_of
from airtune.randomness import derived_seed, generator
from airtune.record.temporary import TemporaryFolder
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, ClientUpdate, fit, gather_moments, scatter_moments
from airtune.training.evaluation import (
    answer_loss,
    check_choices_fit,
    exact_match,
    group_losses,
    label_accuracy,
)
from airtune.training.federation import ClientData, Evaluation, Federation, MeasuredCosts
from airtune.training.local_terms import with_untrained
from airtune.training.placements import Placements
from airtune.training.refits import Refits
from airtune.training.sizes import TextSizes, sizes_of, step_tokens, tokens_of


class Worker:
    """Holds the base model, the data and the clients' calibration statistics.

    Args:
        scenario: whose clients to work for.
        device: where to compute, e.g. `cuda`; None takes CUDA where there is one.
    """

    def __init__(self, scenario: Scenario, *, device: str | None = None) -> None:
        self.scenario = scenario
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model(scenario.model, seed=scenario.seed, max_tokens=scenario.task.max_tokens)
        self._model, self._tokenizer = loaded.model.to(self._device), loaded.tokenizer
        speed_up_attention(self._model, longest=scenario.task.max_tokens)
        self.shape, self._fingerprint = loaded.shape, loaded.fingerprint
        self._targets = loaded.lora_targets
        self._rule = rule_of(scenario)
        self._placements = Placements(self._model, self.shape)
        self._refits = Refits(scenario, self._model, self.shape)
        self._load_data()
        # A round's new start is the same for all clients of a rank.
        self._restart = lru_cache(maxsize=4)(self._new_adapter)
        # By client; None: of the server's text, which all are cut by.
        self._statistics: dict[int | None, Statistics] = {}
        self._costs: dict[int | None, MeasuredCosts] = {}
        self._on_disk = TemporaryFolder() if scenario.participation.draws else None

    def _load_data(self) -> None:
        scenario, held_out = self.scenario, self.scenario.task.client_eval_examples
        batch_size, limit = scenario.evaluation.batch_size, scenario.task.max_tokens
        self._task = load_task(scenario.task, seed=scenario.seed, tokenizer=self._tokenizer)
        if self._task.choices is not None:
            check_choices_fit(
                self._tokenizer, self._task.test, self._task.choices, longest_text(self._model)
            )
        data = encode(self._task.train, self._tokenizer, limit)
        self._task = replace(self._task, train=())  # from here on they are held as tokens
        shared = scenario.pruning.calibration == "shared"
        test = encode(self._task.test, self._tokenizer, limit)
        self._text_fingerprint = text_fingerprint((data, test))
        self._shared_texts = data[: scenario.pruning.calibration_examples] if shared else []
        data = data[len(self._shared_texts) :]
        self._test_batches = eval_batches(test, batch_size)
        shares = partition(
            [example.label for example in data],
            len(scenario.client_devices),
            scenario.partition,
            generator(scenario.seed, "partition"),
            held_out=held_out,
            reserved=holders_of(scenario, {e.label: self._task.label_name(e.label) for e in data}),
        )
        owned = [[data[i] for i in share] for share in shares]
        self._train_data = [own[held_out:] for own in owned]
        self._client_test_data = [own[:held_out] for own in owned]

    @cached_property
    def federation(self) -> Federation:
        """What planning has to know; measures the cost curves where the scenario asks for it."""
        scenario = self.scenario
        # Of a population, a client's curve is measured when it is first in a cohort.
        measured = scenario.pruning.cost == "measured" and not scenario.participation.draws
        return Federation(
            shape=self.shape,
            model_fingerprint=self._fingerprint,
            text_fingerprint=self._text_fingerprint,
            model_parameters=sum(p.numel() for p in self._model.parameters()),
            clients=tuple(
                ClientData(
                    examples=len(data),
                    labels=self._label_counts(data),
                    pruning_cost=self._cost_curve(client) if measured else None,
                    calibration_flops=self._calibration_flops(client),
                    rereading_flops=self._rereading_flops(client),
                    most_pruned=self._most_pruned(client) if measured else None,
                )
                for client, data in enumerate(self._train_data)
            ),
        )

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client; read from its text once."""
        owner = self._owner(client)
        if owner not in self._costs:
            self._costs[owner] = self._cost_curve(client), self._most_pruned(client)
        return self._costs[owner]

    def _label_counts(self, data: Sequence[Encoded]) -> dict[str, int]:
        counts = sorted(Counter(example.label for example in data).items())
        return {self._task.label_name(label): count for label, count in counts}

    def initial_adapter(self) -> Adapter:
        """Return LoRA's start: random A, B = 0, so that the model is the base model."""
        seed = derived_seed(self.scenario.seed, "adapter")
        return self._new_adapter(self.scenario.training.lora_rank, seed)

    def _new_adapter(self, rank: int, seed: int) -> Adapter:
        with adapted(self._model, self._config(rank), seed=seed) as peft_model:
            return values_of(peft_model)

    def _config(self, rank: int) -> LoraConfig:
        transposed = self.shape.table.transposed
        return lora_config(self.scenario.training, self._targets, rank, transposed=transposed)

    def batches(self, round: int, client: int, steps: int) -> list[Batch]:
        """Draw a client's batches of one round: the same whatever the method."""
        return local_batches(
            self._train_data[client],
            batch_size=self.scenario.training.batch_size,
            steps=steps,
            rng=generator(self.scenario.seed, "batches", round=round, client=client),
        )

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the size of each local step of a round, counted from its very batches."""
        return step_tokens(self.scenario, self.text_sizes[client], round, client)

    @cached_property
    def text_sizes(self) -> tuple[TextSizes, ...]:
        """Each client's training examples, counted."""
        return tuple(map(sizes_of, self._train_data))

    def train(self, job: ClientJob) -> ClientUpdate:
        """Cut, fine-tune and answer as the assignment says, as the client's device would."""
        assigned = job.assignment
        if not self._rule.restarts:
            start = leading(job.adapter, assigned.mode.rank)
            return self._train(replace(job, adapter=start))
        seed = derived_seed(self.scenario.seed, "restart", round=job.round)
        if assigned.pruning > 0:
            self._calibrated(job.client)  # on the base as it began, whichever round comes first
        scale = self.scenario.training.lora_scale
        transposed = self.shape.table.transposed
        with merged_into_base(self._model, job.adapter, scale, transposed=transposed):
            start = self._restart(assigned.mode.rank, seed)
            return self._train(replace(job, adapter=start))

    def _train(self, job: ClientJob) -> ClientUpdate:
        section, mode, shape = self.scenario.training, job.assignment.mode, self.shape
        # Fewer steps than the round's are its first ones, so that all clients' draws stay.
        steps = max(mode.local_steps, section.local_steps)
        drawn = self.batches(job.round, job.client, steps)[: mode.local_steps]
        batches = [batch.to(self._device) for batch in drawn]
        structure, refit = self._cut_of(job)
        moments = None
        if job.optimizer_state is not None:
            moments = gather_moments(job.optimizer_state, structure, shape)
        start_values = gather_adapter(job.adapter, structure, shape)
        correction = None
        if job.correction is not None:
            correction = gather_adapter(leading(job.correction, mode.rank), structure, shape)
        with self._placements.submodel(
            structure,
            self._config(mode.rank),
            start_values,
            refit,
            freezes_a=mode.freezes_a,
            added=None if refit is None else self._refits.added(job),
        ) as (placed, parameters):
            new_moments, train_loss, control = fit(
                placed.peft_model,
                parameters,
                batches,
                section.in_round(job.rate_round or job.round, self.scenario.rounds),
                moments,
                correction,
            )
            sent = placed.values()
        if new_moments is not None:
            moments = scatter_moments(
                new_moments, job.optimizer_state, job.adapter, structure, shape
            )
        if mode.sends_change:
            seed = derived_seed(self.scenario.seed, "rounding", round=job.round, client=job.client)
            sent = rounded_change(start_values, sent, mode.bits_per_value, seed=seed)
        sizes = structure.sizes
        return ClientUpdate(
            round=job.round,
            client=job.client,
            adapter=sent,
            structure=structure,
            pruning=realised_pruning(shape, sizes),
            flops=sum(training_flops(shape, sizes, tokens_of(b), mode) for b in batches),
            uplink_bits=payload_bits(shape, sizes, mode),
            examples=len(self._train_data[job.client]),
            train_loss=train_loss,
            optimizer_state=moments,
            control=with_untrained(control, sent),
        )

    def evaluate(
        self, adapter: Adapter, *, final: bool = False, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter on the server's test set.

        Args:
            adapter: the full model's.
            final: also measure what may be left to the end: exact match by generation, and with
                `evaluation.metrics_every_round = false` everything but the loss.
            clients: whose own held-out text is measured, in this order; None: that of all.
        """
        scenario = self.scenario
        metrics: dict[str, float] = {}
        own: list[float] = []
        with self._placements.whole(self._config(rank_of(adapter)), adapter) as model:
            loss = answer_loss(model, self._test_batches)
            choices, section = self._task.choices, scenario.evaluation
            asked = final or section.metrics_every_round
            held = self._client_test_data
            if clients is not None:
                held = [held[client] for client in clients]
            if asked and scenario.task.client_eval_examples and held:
                own = group_losses(model, held, section.batch_size)
                metrics["mean_client_loss"] = sum(own) / len(own)
                metrics["worst_client_loss"] = max(own)
            if asked and choices is not None:
                metrics["accuracy"] = label_accuracy(
                    model,
                    self._tokenizer,
                    self._task.test,
                    choices,
                    batch_size=section.batch_size,
                )
            elif choices is None and final and section.generate:
                examples = self._task.test[: section.generate_examples]
                match = exact_match(
                    model,
                    self._tokenizer,
                    examples,
                    batch_size=section.generate_batch_size or section.batch_size,
                )
                metrics["exact_match"] = match.strict
                if match.flexible is not None:
                    metrics["exact_match_flexible"] = match.flexible
        return Evaluation(loss, metrics, tuple(own))

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format; `AutoPeftModelForCausalLM` loads it with its base."""
        base = base_reference(self.scenario.model, seed=self.scenario.seed)
        with adapted(self._model, self._config(rank_of(adapter)), adapter) as model:
            save_adapter(model, base, folder, gguf_file=self.scenario.model.gguf_file)

    def close(self) -> None:
        """Remove what lies on disk for as long as the worker works."""
        if self._on_disk is not None:
            self._on_disk.remove()

    def _cut_of(self, job: ClientJob) -> tuple[Structure, Statistics | None]:
        """Return what the client's submodel keeps, and what to refit it on: nothing if all."""
        client, pruning = job.client, job.assignment.pruning
        if pruning == 0:
            return whole(self.shape), None
        section = self.scenario.pruning
        statistics = self._calibrated(client)
        select = selection_of(
            section.selection,
            seed=self.scenario.seed,
            round=job.round,
            client=client,
        )
        structure = choose(statistics, self.shape, pruning, section.units, select=select)
        if not section.refit:
            return structure, None
        owner, texts = self._owner(client), self._calibration_texts(client)
        return structure, self._refits.statistics(owner, job, statistics, texts)

    def _calibrated(self, client: int) -> Statistics:
        """Return the statistics that the client is cut by, read from their text once."""
        owner = self._owner(client)
        if owner not in self._statistics:
            texts = self._calibration_texts(client)
            batches = eval_batches(texts, self.scenario.evaluation.batch_size)
            section, read = self.scenario.pruning, calibrate
            if section.cache_statistics:
                read = partial(cached_calibration, assets.cache_dir() / "statistics")
            elif self._on_disk is not None and owner is not None:
                read = partial(cached_calibration, self._on_disk.path)
            self._statistics[owner] = read(
                self._model, self.shape, batches, stand_ins=section.units == "blocks"
            )
            if len(self._statistics) > self.scenario.cohort_size:
                del self._statistics[next(iter(self._statistics))]  # the oldest; it is on disk
        return self._statistics[owner]

    def _owner(self, client: int) -> int | None:
        return None if self._shared_texts else client

    def _calibration_texts(self, client: int) -> list[Encoded]:
        wanted = self.scenario.pruning.calibration_examples
        return self._shared_texts or self._train_data[client][:wanted]

    def _calibration_flops(self, client: int) -> float:
        """Count what the client's device computes before it is first cut, where it is its work."""
        if self._shared_texts:
            return 0.0
        lengths = [len(text.input_ids) for text in self._calibration_texts(client)]
        return calibration_flops(self.shape, lengths, sensitivity_rows=SENSITIVITY_ROWS)

    def _rereading_flops(self, client: int) -> float:
        """Count what its device computes whenever the calibration text is read again."""
        section = self.scenario.pruning
        if section.refit_every_rounds is None:
            return 0.0
        texts = self._calibration_texts(client)[: section.refit_examples]
        return rereading_flops(self.shape, [len(text.input_ids) for text in texts])

    def _most_pruned(self, client: int) -> KeptSizes | None:
        section = self.scenario.pruning
        if section.max_pruning == 0:
            return None
        statistics = self._calibrated(client)
        return choose(statistics, self.shape, section.max_pruning, section.units).sizes

    def _cost_curve(self, client: int) -> tuple[tuple[float, float], ...]:
        section = self.scenario.pruning
        return cost_curve(
            self._calibrated(client), self.shape, section.units, max_pruning=section.max_pruning
        )
