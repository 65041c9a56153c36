"""What the user writes: one TOML file, read into a frozen, validated `Scenario`.

Every key has its unit in its name, a default where a sensible one exists, and a range. An
unknown key, a wrong type or an impossible value is refused with one line that names the key,
quotes the value and says what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from airtune.scenario import bounds
from airtune.scenario.aggregation import AggregationSection, check_steps, check_training
from airtune.scenario.cell import CellSection, DeviceSection
from airtune.scenario.knobs import KNOWN, NAMES, Knob
from airtune.scenario.participation import ParticipationSection
from airtune.scenario.pruning import PruningSection, check_common_rate, check_refits
from airtune.scenario.schedule import ScheduleSection, check_schedule
from airtune.scenario.section import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)
from airtune.scenario.tasks import TASKS, check_template


class ModelSection(Section):
    """The language model that every device holds and the adapter is trained for."""

    id: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct`, `gemma-3-270m` and `tiny` are built in; otherwise a folder or a
    hub id."""
    gguf_file: str | None = None
    """The file inside the folder or repository, where the weights are in GGUF form."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and the computation; adapters are float32. A processor without
    instructions for bfloat16 multiplies in float32 and rounds."""
    quantize: Literal["int8", "nf4"] | None = None
    """Hold the blocks' weights in 8 or 4 bits (extra `quantize`); computation stays in `dtype`."""


class TaskSection(Section):
    """What the model is fine-tuned to do, and how much of the data is used."""

    name: str = "gsm-symbolic"
    """A name from `airtune methods`."""
    source: str | None = None
    """A file, a folder or a hub id; not needed by tasks that generate their problems."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    answer_column: str = "answer"
    """Column of the answer."""
    label_column: str = "label"
    """What `dirichlet` skews; in `classification`, the answer."""
    prompt_template: str | None = None
    """Several columns as one prompt, ``"{instruction}\\n{input}"``, in place of prompt_column."""
    chat_template: bool = False
    """Prompts and answers as turns in the model's own chat template, not in plain text."""
    train_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] = 512
    """Over all clients together."""
    eval_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] = 64
    """The server's test set, from the source's test part where it has one."""
    eval_part: Literal["test", "train"] = "test"
    """`train`: held-out training text stands in for the test part, for searches and pilots that
    must not see it."""
    client_eval_examples: Annotated[int, Field(ge=0), bounds.COUNT_OR_NONE] = 0
    """Held back from each client's own data, for the loss on its own distribution."""
    max_tokens: Annotated[int, Field(ge=8), bounds.TOKENS] = 160
    """Prompt and answer together; longer examples are left out."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not TASKS.has(name):
            raise ValueError(f"{name!r} is unknown; allowed: {', '.join(TASKS)}")
        return name

    @model_validator(mode="after")
    def _framing(self) -> TaskSection:
        if self.prompt_template is not None:
            if self.name in ("gsm-symbolic", "gsm8k", "yahoo-answers", "sums"):
                raise ValueError(
                    f"prompt_template is for prompt-answer and classification; name = {self.name!r}"
                )
            check_template(self.prompt_template)
        if self.chat_template and self.name == "sums":
            raise ValueError("chat_template = true: sums are plain text, not questions")
        return self


class PartitionSection(Section):
    """How the training examples are spread over the clients."""

    kind: Literal["iid", "dirichlet", "quantity"] = "dirichlet"
    """`dirichlet`: over labels (for maths: the number of steps). `quantity`: sizes only."""
    alpha: Annotated[PositiveFloat, bounds.ALPHA] = 0.5
    """Concentration of the Dirichlet distribution: smaller is more uneven."""
    min_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] = 8
    """What every client has at least."""


class TrainingSection(Section):
    """Local fine-tuning with LoRA, by AdamW unless another optimiser is named."""

    local_steps: Annotated[PositiveInt, bounds.COUNT_OF_STEPS] = 4
    """AdamW steps of a client in a round."""
    batch_size: Annotated[PositiveInt, bounds.COUNT_OF_STEPS] = 4
    """Examples of a step."""
    learning_rate: Annotated[PositiveFloat, bounds.LEARNING_RATE] = 1e-3
    """AdamW's, in the first round."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Over the rounds. AdamW's steps do not shrink with the gradient, so at a constant rate the
    loss of clients of few labels swings to the end; linear: the last of R rounds has 1/R of it."""
    weight_decay: Annotated[NonNegativeFloat, bounds.DECAY] = 0.0
    """AdamW's, decoupled from the gradient."""
    max_grad_norm: Annotated[PositiveFloat, bounds.FACTOR] = 1.0
    """The gradient's L2 norm is clipped to this."""
    lora_rank: Annotated[PositiveInt, bounds.RANK] = 8
    """Rank of the server's adapter, and of clients without a rank of their own."""
    lora_alpha: Annotated[PositiveFloat, bounds.FACTOR] = 16.0
    """LoRA's scale is alpha / rank; a lower rank keeps the scale."""
    keep_optimizer: bool = False
    """Clients keep AdamW's moments from round to round instead of starting afresh."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The clients' own: AdamW, or plain SGD at the same learning rate and weight decay."""
    proximal_mu: Annotated[NonNegativeFloat, bounds.COST] = 0.0
    """FedProx: mu of the term mu/2 |w - w_t|^2 over adapter values in each client's loss."""
    scaffold: bool = False
    """SCAFFOLD: gradients are corrected by control variates, which are sent both ways."""

    @model_validator(mode="after")
    def _sizes(self) -> TrainingSection:
        if self.local_steps * self.batch_size > bounds.MOST_EXAMPLES_A_ROUND:
            raise ValueError(
                f"local_steps = {self.local_steps} times batch_size = {self.batch_size} is above "
                f"{bounds.MOST_EXAMPLES_A_ROUND:,}: a client's examples of a round are one list"
            )
        return self

    @property
    def lora_scale(self) -> float:
        """What B A is multiplied by, at every rank."""
        return self.lora_alpha / self.lora_rank

    def in_round(self, round: int, rounds: int) -> TrainingSection:
        """Return the settings of one round, counted from 1, of `rounds`: its own learning rate.

        Rounds past the last one have its rate.
        """
        if self.learning_rate_schedule == "constant":
            return self
        left = max(rounds - round + 1, 1) / rounds
        return self.model_copy(update={"learning_rate": self.learning_rate * left})


class PlanningSection(Section):
    """How pruning and bandwidth, and where asked the other knobs, are planned each round."""

    method: str = "exact"
    """A name from `airtune methods`."""
    kappa: Annotated[NonNegativeFloat, bounds.COST] = 0.5
    """How much pruning slows learning: rounds needed grow as 1/(1 - kappa Q). With `knobs` the
    default is 1: a pilot's costs are shares of the rounds themselves."""
    fit_kappa: bool = False
    """Fit kappa to the run's own losses after each round, from the value above; the first round
    then leaves the model whole, as a reference."""
    max_pruning_loss: Annotated[NonNegativeFloat, bounds.COST] | None = None
    """Given: minimise the round's latency subject to Q <= this, instead of N(Q) T."""
    tolerance: Annotated[float, Field(gt=0, lt=1), bounds.TOLERANCE] = 1e-6
    """Relative gap at which `exact` stops; least improvement with which `bcd` continues."""
    knobs: Annotated[
        Literal["all"] | Annotated[tuple[Knob, ...], Field(strict=False)] | None, KNOWN
    ] = None
    """What the plan may turn, each client by itself: any of bandwidth, pruning, steps, rank, bits
    and absence, or `all`. Left out, the method's own: bandwidth and pruning."""
    rank_values: Annotated[tuple[PositiveInt, ...], Field(strict=False), bounds.RANKS] | None = None
    """LoRA ranks to choose from; default: the client's own, halved down to 1."""
    bits_values: Annotated[tuple[Literal[2, 4, 8], ...], Field(strict=False), bounds.CHOICES] = (
        8,
        4,
        2,
    )
    """Bits of an uplink value to choose from, beside those that the scenario has."""
    steps_values: Annotated[tuple[PositiveInt, ...], Field(strict=False), bounds.STEPS] | None = (
        None
    )
    """Local steps to choose from; default: 1 to training.local_steps, at most 4 evenly spread."""
    costs: str | None = None
    """The file that `airtune costs` wrote; default: the costs measured for SmolLM2-135M. Without
    knobs it is not read, so that a study can give it to all its methods."""

    @model_validator(mode="before")
    @classmethod
    def _kappa_of_pilots(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("knobs") is not None and "kappa" not in values:
            return {**values, "kappa": 1.0}
        return values

    @property
    def turned(self) -> frozenset[str]:
        """The knobs that are turned, where `knobs` is given."""
        return frozenset(NAMES if self.knobs == "all" else self.knobs or ())


class EvaluationSection(Section):
    """What is measured on the server's test set."""

    every_rounds: Annotated[PositiveInt, bounds.ROUNDS] = 1
    """The test set is evaluated in every n-th round and in the last one."""
    batch_size: Annotated[PositiveInt, bounds.COUNT_OF_STEPS] = 16
    """Examples evaluated at once."""
    metrics_every_round: bool = True
    """Accuracy, and the loss on clients' own held-out text; false: at the end only."""
    generate: bool = False
    """At the end, also exact match (maths) by generating answers."""
    generate_examples: Annotated[PositiveInt, bounds.COUNT_OF_EXAMPLES] = 32
    """Number of test examples that answers are generated for."""
    generate_batch_size: Annotated[PositiveInt, bounds.COUNT_OF_STEPS] | None = None
    """Answers generated at once; default: `batch_size`. Generating holds the logits of one token a
    text, a test loss those of all answer tokens: more texts fit."""


class Scenario(Section):
    """A cell, its devices, a model, a task, and how the run is planned and trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the scenario in the record and in reports."""
    description: str = ""
    """One line for `airtune scenarios` and the report."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every random draw."""
    rounds: Annotated[PositiveInt, bounds.ROUNDS] = 8
    """Rounds of the run."""
    time_budget_s: PositiveFloat | None = None
    """Given: the run ends with the first round that ends at or after this time on the virtual
    clock, and with `rounds` at the latest."""
    plugins: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Python files or modules that add methods, rules, channel models or tasks: docs/extend.md."""
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    partition: PartitionSection = PartitionSection()
    cell: CellSection = CellSection()
    devices: Annotated[tuple[DeviceSection, ...], Field(min_length=1, strict=False)]
    training: TrainingSection = TrainingSection()
    pruning: PruningSection = PruningSection()
    planning: PlanningSection = PlanningSection()
    participation: ParticipationSection = ParticipationSection()
    aggregation: AggregationSection = AggregationSection()
    schedule: ScheduleSection = ScheduleSection()
    evaluation: EvaluationSection = EvaluationSection()

    def _check_knobs(self) -> None:
        planning, rule = self.planning, self.participation.rule
        for key, value, knob in (
            ("rank_values", planning.rank_values, "rank"),
            ("steps_values", planning.steps_values, "steps"),
        ):
            if value is not None and knob not in planning.turned:
                raise ValueError(
                    f"planning.{key} = {list(value)} has no effect without '{knob}' in "
                    "planning.knobs"
                )
        if planning.knobs is None:
            for key in ("floor", "fairness"):
                value = getattr(self.participation, key)
                if value:
                    raise ValueError(
                        f"participation.{key} = {value:g} has no effect without planning.knobs"
                    )
        elif self.participation.left_out_cost != 1:
            raise ValueError(
                f"participation.left_out_cost = {self.participation.left_out_cost:g} has no effect "
                "with planning.knobs: what absence costs is read from planning.costs"
            )
        elif rule not in ("all", "in-turn"):
            raise ValueError(
                f"participation.rule = '{rule}' is a choice of knobs itself: with planning.knobs "
                "allowed are all, in-turn"
            )
        elif planning.fit_kappa:
            raise ValueError("planning.fit_kappa cannot be combined with planning.knobs")

    @property
    def client_devices(self) -> tuple[DeviceSection, ...]:
        """One entry a client, in the order of the file: kinds repeated by their count."""
        return _one_a_client(self.devices)

    @property
    def client_ranks(self) -> tuple[int, ...]:
        """Each client's adapter rank: its device's, or the run's."""
        return tuple(device.lora_rank or self.training.lora_rank for device in self.client_devices)

    @property
    def client_names(self) -> tuple[str, ...]:
        """`<profile>-<i>` for each client, i counted within its profile from 1."""
        return _names_of_kinds(self.devices)

    @property
    def cohort_size(self) -> int:
        """Clients of a round, where enough are available."""
        return self.participation.size(len(self.client_devices))

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        clients = sum(device.count for device in self.devices)
        if clients > bounds.MOST_CLIENTS:
            raise ValueError(
                f"devices: {clients:,} clients together, above {bounds.MOST_CLIENTS:,}: each "
                "client is a row of every round's record"
            )
        for index, device in enumerate(self.devices):
            if device.lora_rank is not None and device.lora_rank > self.training.lora_rank:
                raise ValueError(
                    f"devices.{index}.lora_rank = {device.lora_rank} is above "
                    f"training.lora_rank = {self.training.lora_rank}, the server's"
                )
            if device.only_labels and self.partition.kind != "dirichlet":
                raise ValueError(
                    f"devices.{index}.only_labels is allowed with partition.kind = 'dirichlet' "
                    f"only, not with '{self.partition.kind}'"
                )
        if self.planning.fit_kappa and self.planning.kappa == 0:
            raise ValueError("planning.fit_kappa needs planning.kappa above 0 to begin from")
        if self.planning.fit_kappa and self.participation.rule != "all":
            raise ValueError(
                "planning.fit_kappa is allowed with participation.rule = 'all' only: "
                "what clients leave undone is not what pruning costs"
            )
        if self.time_budget_s and self.training.learning_rate_schedule == "linear":
            raise ValueError(
                "time_budget_s is allowed with training.learning_rate_schedule = 'constant' only: "
                "how many rounds the rate has to fall over is not known beforehand"
            )
        self._check_knobs()
        check_steps(self)
        check_training(self)
        check_schedule(self)
        check_refits(self)
        check_common_rate(self)
        clients = len(self.client_devices)
        if self.cohort_size > clients:
            raise ValueError(
                f"participation.cohort = {self.participation.cohort} is more than the {clients:,} "
                "clients of devices"
            )
        if self.participation.weights == "inclusion" and "absence" in self.planning.turned:
            raise ValueError(
                "participation.weights = 'inclusion' cannot go with the knob absence: a plan that "
                "leaves clients out is no draw with a known probability"
            )
        need = clients * (self.partition.min_examples + self.task.client_eval_examples)
        what = "partition.min_examples and task.client_eval_examples"
        if self.pruning.calibration == "shared":
            need += self.pruning.calibration_examples
            what = f"pruning.calibration_examples (shared), {what}"
        if need > self.task.train_examples:
            raise ValueError(
                f"task.train_examples = {self.task.train_examples} is too few for {clients} "
                f"clients: {what} need {need}"
            )
        return self


@lru_cache(maxsize=16)
def _one_a_client(kinds: tuple[DeviceSection, ...]) -> tuple[DeviceSection, ...]:
    return tuple(device for device in kinds for _ in range(device.count))


@lru_cache(maxsize=16)
def _names_of_kinds(kinds: tuple[DeviceSection, ...]) -> tuple[str, ...]:
    return names_of_clients(_one_a_client(kinds))


def names_of_clients(devices: Iterable[DeviceSection]) -> tuple[str, ...]:
    """Return `<profile>-<i>` for each client, i counted within its profile from 1."""
    seen: dict[str, int] = {}
    names = []
    for device in devices:
        stem = Path(device.profile).stem
        seen[stem] = seen.get(stem, 0) + 1
        names.append(f"{stem}-{seen[stem]}")
    return tuple(names)
