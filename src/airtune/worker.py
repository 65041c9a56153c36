"""One process that can do any client's work: the base model once, each client's data by index.

Everything here follows from the scenario alone, so that any engine can build a worker
anywhere and get the same answers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from airtune.client import (
    Adapter,
    ClientJob,
    ClientUpdate,
    adapted,
    adapter_values,
    gather_moments,
    lora_config,
    scatter_moments,
    train,
)
from airtune.data import Batch, Encoded, encode, eval_batches, load_task, local_batches, partition
from airtune.errors import InputError
from airtune.evaluate import answer_loss, exact_match, label_accuracy
from airtune.models import load_model
from airtune.pruning import Statistics, calibrate, choose, cost_curve, cut, gather_adapter
from airtune.randomness import derived_seed, generator
from airtune.scenario import Scenario
from airtune.workload import ModelShape, StepTokens, payload_bits, realised_pruning, training_flops


@dataclass(frozen=True)
class ClientSetting:
    """What the server knows of one client's data before the first round."""

    examples: int
    labels: dict[int, int]
    """How many examples of each label."""
    pruning_cost: tuple[tuple[float, float], ...] | None
    """Measured learning cost of pruning, or None for the linear one."""


@dataclass(frozen=True)
class Setting:
    """What planning and the record know of the model and the clients."""

    shape: ModelShape
    model_fingerprint: str
    model_parameters: int
    clients: tuple[ClientSetting, ...]
    too_long: int
    """Examples left out because they pass task.max_tokens."""


@dataclass(frozen=True)
class Evaluation:
    """What the full model with the adapter achieves."""

    loss: float
    """Per answer token, on the server's test set."""
    metrics: dict[str, float]
    """`accuracy` or `exact_match`, and `worst_client_loss` where clients hold data back."""


class Worker:
    """Holds the base model, the data and the clients' calibration statistics."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        loaded = load_model(scenario.model, seed=scenario.seed)
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self.shape, self._fingerprint = loaded.shape, loaded.fingerprint
        self._config = lora_config(scenario.training, loaded.lora_targets)
        self._task = load_task(scenario.task, seed=scenario.seed)
        self._load_data()
        self._statistics: dict[int, Statistics] = {}

    def _load_data(self) -> None:
        scenario = self.scenario
        limit = scenario.task.max_tokens
        train_set = encode(self._task.train, self._tokenizer, limit)
        test_set = encode(self._task.test, self._tokenizer, limit)
        self._too_long = train_set.too_long + test_set.too_long
        if not test_set.examples:
            raise InputError(f"task.max_tokens = {limit}: every test example is longer; raise it")
        self._test_batches = eval_batches(test_set.examples, scenario.evaluation.batch_size)
        labels = np.array([example.label for example in train_set.examples])
        shares = partition(
            labels,
            len(scenario.client_devices),
            scenario.partition,
            generator(scenario.seed, "partition"),
            reserve=scenario.task.client_eval_examples,
        )
        held_back = scenario.task.client_eval_examples
        self._train_data: list[list[Encoded]] = []
        self._client_test_batches: list[list[Batch]] = []
        self._labels: list[dict[int, int]] = []
        for share in shares:
            own = [train_set.examples[i] for i in share]
            self._train_data.append(own[held_back:])
            self._client_test_batches.append(
                eval_batches(own[:held_back], scenario.evaluation.batch_size)
            )
            self._labels.append(dict(sorted(Counter(int(labels[i]) for i in share).items())))

    @cached_property
    def setting(self) -> Setting:
        """What planning has to know; measures the cost curves where the scenario asks for it."""
        measured = self.scenario.pruning.cost == "measured"
        return Setting(
            shape=self.shape,
            model_fingerprint=self._fingerprint,
            model_parameters=sum(p.numel() for p in self._model.parameters()),
            clients=tuple(
                ClientSetting(
                    examples=len(data),
                    labels=self._labels[client],
                    pruning_cost=self._cost_curve(client) if measured else None,
                )
                for client, data in enumerate(self._train_data)
            ),
            too_long=self._too_long,
        )

    def initial_adapter(self) -> Adapter:
        """Return LoRA's start: random A, B = 0, so that the model is the base model."""
        seed = derived_seed(self.scenario.seed, "adapter")
        with adapted(self._model, self._config, seed=seed) as peft_model:
            return adapter_values(peft_model)

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
        steps = self.scenario.training.local_steps
        return tuple(tokens_of(batch) for batch in self.batches(round, client, steps))

    def train(self, job: ClientJob) -> ClientUpdate:
        """Cut, fine-tune and answer, as the client's device would."""
        section = self.scenario.training
        batches = self.batches(job.round, job.client, job.local_steps)
        statistics = self._calibrated(job.client)
        structure = choose(statistics, self.shape, job.pruning, self.scenario.pruning.units)
        refit = self.scenario.pruning.refit
        submodel = cut(self._model, self.shape, structure, statistics if refit else None)
        moments = None
        if job.optimizer_state is not None:
            moments = gather_moments(job.optimizer_state, structure, self.shape)
        trained = train(
            submodel,
            self._config,
            gather_adapter(job.adapter, structure, self.shape),
            batches,
            section,
            moments,
        )
        if trained.optimizer_state is not None:
            moments = scatter_moments(
                trained.optimizer_state, job.optimizer_state, job.adapter, structure, self.shape
            )
        sizes, rank = structure.sizes, section.lora_rank
        return ClientUpdate(
            round=job.round,
            client=job.client,
            adapter=trained.adapter,
            structure=structure,
            pruning=realised_pruning(self.shape, sizes),
            flops=sum(
                training_flops(self.shape, sizes, tokens_of(b), lora_rank=rank) for b in batches
            ),
            uplink_bits=payload_bits(
                self.shape,
                sizes,
                lora_rank=rank,
                bits_per_value=self.scenario.aggregation.payload_bits_per_value,
            ),
            examples=len(self._train_data[job.client]),
            train_loss=trained.train_loss,
            optimizer_state=moments,
            wall_s=trained.wall_s,
        )

    def evaluate(self, adapter: Adapter, *, final: bool = False) -> Evaluation:
        """Measure the full model with the adapter on the server's test set.

        Args:
            adapter: the full model's.
            final: also measure what is too slow for every round: exact match by generation,
                where the scenario asks for it.
        """
        scenario = self.scenario
        metrics: dict[str, float] = {}
        with adapted(self._model, self._config, adapter) as model:
            model.eval()
            loss = answer_loss(model, self._test_batches)
            own = [answer_loss(model, batches) for batches in self._client_test_batches if batches]
            if own:
                metrics["mean_client_loss"] = sum(own) / len(own)
                metrics["worst_client_loss"] = max(own)
            if self._task.choices is not None:
                metrics["accuracy"] = label_accuracy(
                    model,
                    self._tokenizer,
                    self._task.test,
                    self._task.choices,
                    max_tokens=scenario.task.max_tokens,
                    batch_size=scenario.evaluation.batch_size,
                )
            elif final and scenario.evaluation.generate:
                examples = self._task.test[: scenario.evaluation.generate_examples]
                metrics["exact_match"] = exact_match(
                    model, self._tokenizer, examples, batch_size=scenario.evaluation.batch_size
                )
        return Evaluation(loss, metrics)

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format; `PeftModel.from_pretrained` loads it."""
        with adapted(self._model, self._config, adapter) as model:
            model.save_pretrained(folder)

    def _calibrated(self, client: int) -> Statistics:
        """Return the client's calibration statistics, read from its own text once."""
        if client not in self._statistics:
            wanted = self.scenario.pruning.calibration_examples
            examples = self._train_data[client][:wanted]
            batches = eval_batches(examples, self.scenario.evaluation.batch_size)
            self._statistics[client] = calibrate(self._model, self.shape, batches)
        return self._statistics[client]

    def _cost_curve(self, client: int) -> tuple[tuple[float, float], ...]:
        section = self.scenario.pruning
        return cost_curve(
            self._calibrated(client), self.shape, section.units, max_pruning=section.max_pruning
        )


def tokens_of(batch: Batch) -> StepTokens:
    """Count what a step on this batch computes: rows, padded length, answer tokens."""
    rows, length = batch.input_ids.shape
    return StepTokens(
        rows=rows, length=length, label_tokens=int(torch.count_nonzero(batch.labels != -100))
    )
