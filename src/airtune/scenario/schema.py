"""What the user writes: one TOML file, read into a frozen, validated `Scenario`.

Every key has its unit in its name, a default where a sensible one exists, and a range. An
unknown key, a wrong type or an impossible value is refused with one line that names the key,
quotes the value and says what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from airtune.scenario.tasks import TASKS

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the scenario file: frozen, and unknown keys are errors."""

    # strict: true is not 1 and "3" is not 3; TOML already has the types.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSection(Section):
    """The language model that every device holds and the adapter is trained for."""

    id: str = "smollm2-135m-instruct"
    """`smollm2-135m-instruct`, `gemma-3-270m` and `tiny` are built in; otherwise a folder or a
    hub id."""
    gguf_file: str | None = None
    """The file inside the folder or repository, where the weights are in GGUF form."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Literal["int8", "nf4"] | None = None
    """Hold the blocks' weights in 8 or 4 bits (extra `quantize`); computation stays in `dtype`."""


class TaskSection(Section):
    """What the model is fine-tuned to do, and how much of the data is used."""

    name: str = "gsm-symbolic"
    """A name from `airtune methods`."""
    source: str | None = None
    """A file, a folder or a hub id; not needed by tasks that generate their problems."""
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    train_examples: PositiveInt = 512
    """Over all clients together."""
    eval_examples: PositiveInt = 64
    """The server's test set, from the source's test part where it has one."""
    eval_part: Literal["test", "train"] = "test"
    """`train`: held-out training text stands in for the test part, for searches and pilots that
    must not see it."""
    client_eval_examples: Annotated[int, Field(ge=0)] = 0
    """Held back from each client's own data, for the loss on its own distribution."""
    max_tokens: Annotated[int, Field(ge=8)] = 160
    """Prompt and answer together; longer examples are left out."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not TASKS.has(name):
            raise ValueError(f"{name!r} is unknown; allowed: {', '.join(TASKS)}")
        return name


class PartitionSection(Section):
    """How the training examples are spread over the clients."""

    kind: Literal["iid", "dirichlet", "quantity"] = "dirichlet"
    """`dirichlet`: over labels (for maths: the number of steps). `quantity`: sizes only."""
    alpha: PositiveFloat = 0.5
    """Concentration of the Dirichlet distribution: smaller is more uneven."""
    min_examples: PositiveInt = 8
    """What every client has at least."""


class CellSection(Section):
    """The radio cell: geometry, propagation, bandwidth and link quality."""

    channel: str | None = None
    """A name from `airtune methods`; default: `table` where there is one, else `statistical`."""
    table: str | None = None
    """A CSV file of each client's SNR or rate in each round: docs/channel.md."""
    path_loss: Literal["umi", "uma", "classic"] = "umi"
    """3GPP TR 38.901 urban micro or macro, or 128.1 + 37.6 log10(d_km)."""
    radius_m: PositiveFloat = 250.0
    min_distance_m: PositiveFloat = 10.0
    carrier_hz: Annotated[float, Field(ge=0.5e9, le=100e9)] = 3.5e9
    base_station_height_m: PositiveFloat | None = None
    """Default: 10 m (umi), 25 m (uma)."""
    device_height_m: PositiveFloat = 1.5
    shadowing: bool = True
    shadowing_db: NonNegativeFloat | None = None
    """Standard deviation; default: the path-loss model's own (8 dB for classic)."""
    fading: Literal["none", "rayleigh", "rician"] = "rayleigh"
    """Block fading, redrawn every round."""
    rician_k_db: FiniteFloat = 6.0
    uplink_bandwidth_hz: PositiveFloat = 20e6
    downlink_bandwidth_hz: PositiveFloat = 20e6
    base_station_power_dbm: FiniteFloat = 44.0
    noise_density_dbm_hz: FiniteFloat = -174.0
    base_station_noise_figure_db: NonNegativeFloat = 5.0
    device_noise_figure_db: NonNegativeFloat = 9.0
    gap_db: NonNegativeFloat = 0.0
    """Gap to capacity: the SNR is divided by it."""
    max_spectral_efficiency: PositiveFloat | None = None
    """bit/s/Hz that the best modulation and coding carries; none: Shannon's rate."""
    subcarrier_spacing_hz: Literal[15000, 30000, 60000] | None = None
    """Given: bandwidth is handed out in whole 5G NR resource blocks of 12 subcarriers."""

    @model_validator(mode="after")
    def _distances(self) -> CellSection:
        if self.min_distance_m >= self.radius_m:
            raise ValueError(
                f"min_distance_m = {self.min_distance_m:g} must be below "
                f"radius_m = {self.radius_m:g}"
            )
        if self.channel == "table" and self.table is None:
            raise ValueError("channel = 'table' needs table, the path of a CSV file")
        if self.table is not None and self.channel not in (None, "table"):
            raise ValueError(
                f"table = '{self.table}' goes with channel = 'table' only, "
                f"not with channel = '{self.channel}'"
            )
        return self


class DeviceSection(Section):
    """One kind of device and how many of it take part."""

    profile: str
    """A name from `airtune methods --devices`, or the file that `airtune profile` wrote."""
    count: PositiveInt = 1
    utilisation: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the peak that fine-tuning reaches; default: the profile's."""
    memory_bytes: PositiveFloat | None = None
    lora_rank: PositiveInt | None = None
    """Rank of its clients' adapters; default: training.lora_rank, which is the largest allowed."""
    power_dbm: FiniteFloat = 23.0
    """Transmit power of the uplink."""
    distance_m: PositiveFloat | None = None
    """Fixed distance to the base station; default: drawn uniformly over the cell."""
    uplink_trace: str | None = None
    """A mahimahi trace that replaces the uplink's channel model."""
    downlink_trace: str | None = None


class TrainingSection(Section):
    """Local fine-tuning with LoRA and AdamW."""

    local_steps: PositiveInt = 4
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-3
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Over the rounds. AdamW's steps do not shrink with the gradient, so at a constant rate the
    loss of clients of few labels swings to the end; linear: the last of R rounds has 1/R of it."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    lora_rank: PositiveInt = 8
    lora_alpha: PositiveFloat = 16.0
    keep_optimizer: bool = False
    """Clients keep AdamW's moments from round to round instead of starting afresh."""

    def in_round(self, round: int, rounds: int) -> TrainingSection:
        """Return the settings of one round, counted from 1, of so many: its own learning rate."""
        if self.learning_rate_schedule == "constant":
            return self
        left = (rounds - round + 1) / rounds
        return self.model_copy(update={"learning_rate": self.learning_rate * left})


class PruningSection(Section):
    """How submodels are cut."""

    max_pruning: Annotated[float, Field(ge=0, lt=1)] = 0.6
    """The largest share of the decoder blocks' parameters that a client may leave out."""
    units: Literal["mixed", "mlp", "attention", "blocks"] = "mixed"
    refit: bool = True
    """Refit the output projections on the calibration text after the cut."""
    calibration: Literal["own", "shared"] = "own"
    """Whose text: each client's own, which its device reads before the first round and is billed
    for, or the server's, read beforehand; its statistics then lie on every device beside the
    base model, and like the base model they are not billed."""
    calibration_examples: PositiveInt = 32
    cost: Literal["linear", "measured"] = "linear"
    """Learning cost of pruning: e(rho) = rho, or the curve of the client's calibration."""
    cache_statistics: bool = False
    """Keep calibration statistics on disk for later runs (SmolLM2-135M: 160 MB a client)."""


Knob = Literal["bandwidth", "pruning", "steps", "rank", "bits", "absence"]


class PlanningSection(Section):
    """How pruning and bandwidth, and where asked the other knobs, are planned each round."""

    method: str = "exact"
    """A name from `airtune methods`."""
    kappa: NonNegativeFloat = 0.5
    """How much pruning slows learning: rounds needed grow as 1/(1 - kappa Q). With `knobs` the
    default is 1: a pilot's costs are shares of the rounds themselves."""
    fit_kappa: bool = False
    """Fit kappa to the run's own losses after each round, from the value above; the first round
    then leaves the model whole, so that there is something to compare with."""
    max_pruning_loss: NonNegativeFloat | None = None
    """Given: minimise the round's latency subject to Q <= this, instead of N(Q) T."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    knobs: Literal["all"] | Annotated[tuple[Knob, ...], Field(strict=False)] | None = None
    """What the plan may turn, each client by itself: any of bandwidth, pruning, steps, rank, bits
    and absence, or `all`. Left out, the method's own: bandwidth and pruning."""
    rank_values: Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    """LoRA ranks to choose from; default: the client's own, halved down to 1."""
    bits_values: Annotated[tuple[Literal[2, 4, 8], ...], Field(strict=False)] = (8, 4, 2)
    """Bits of an uplink value to choose from, beside those that the scenario has."""
    steps_values: Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    """Local steps to choose from; default: 1 to training.local_steps, at most 4 evenly spread."""
    costs: str | None = None
    """The file that `airtune costs` wrote; default: the costs measured for SmolLM2-135M."""

    @model_validator(mode="before")
    @classmethod
    def _kappa_of_pilots(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("knobs") is not None and "kappa" not in values:
            return {**values, "kappa": 1.0}
        return values

    @property
    def turned(self) -> frozenset[str]:
        """The knobs that are turned, where `knobs` is given."""
        return frozenset(get_args(Knob) if self.knobs == "all" else self.knobs or ())


class AggregationSection(Section):
    """How the clients' adapters are merged, and in what precision they travel."""

    rule: str = "fedit"
    payload_bits_per_value: Literal[16, 32] = 16
    uplink_change_bits: Literal[2, 4, 8] | None = None
    """Given: uplinks carry the adapter's change, rounded at random to this many bits a value, with
    a 32-bit scale for each rank of A and B in each layer; only flora's broadcast follows suit."""

    @property
    def uplink_bits_per_value(self) -> int:
        """Bits of a value in an uplink message."""
        return self.uplink_change_bits or self.payload_bits_per_value

    @property
    def uplink_bits_per_scale(self) -> int:
        """Bits of each rank's scale in an uplink message, 0 where values travel as they are."""
        return 32 if self.uplink_change_bits else 0


class ParticipationSection(Section):
    """Who takes part in a round, and with how many of its local steps."""

    rule: Literal["all", "partial", "partial-fednova", "deadline", "in-turn"] = "all"
    """A name from `airtune methods`."""
    every_rounds: Annotated[int, Field(ge=2)] = 2
    """`in-turn`: in every n-th round no client sits out."""
    left_out_cost: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What a client that sits a round out costs in learning, on the scale of e(rho)."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a full contribution that every client makes at least, over the rounds: the plan
    weighs a client the more, the longer it has contributed less. With planning.knobs only."""


class EvaluationSection(Section):
    """What is measured on the server's test set."""

    every_rounds: PositiveInt = 1
    batch_size: PositiveInt = 16
    metrics_every_round: bool = True
    """Accuracy, and the loss on clients' own held-out text; false: at the end only."""
    generate: bool = False
    """At the end, also exact match (maths) by generating answers."""
    generate_examples: PositiveInt = 32


class Scenario(Section):
    """A cell, its devices, a model, a task, and how the run is planned and trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rounds: PositiveInt = 8
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
    evaluation: EvaluationSection = EvaluationSection()

    def _check_knobs(self) -> None:
        planning, rule = self.planning, self.participation.rule
        if planning.knobs is None:
            idle = {
                "planning.costs": planning.costs,
                "planning.rank_values": planning.rank_values,
                "planning.steps_values": planning.steps_values,
                "participation.floor": self.participation.floor or None,
            }
            for key, value in idle.items():
                if value is not None:
                    raise ValueError(f"{key} = {value!r} has no effect without planning.knobs")
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
        return tuple(device for device in self.devices for _ in range(device.count))

    @property
    def client_ranks(self) -> tuple[int, ...]:
        """Each client's adapter rank: its device's, or the run's."""
        return tuple(device.lora_rank or self.training.lora_rank for device in self.client_devices)

    @property
    def client_names(self) -> tuple[str, ...]:
        """`<profile>-<i>` for each client, i counted within its profile from 1."""
        return names_of_clients(self.client_devices)

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        for index, device in enumerate(self.devices):
            if device.lora_rank is not None and device.lora_rank > self.training.lora_rank:
                raise ValueError(
                    f"devices.{index}.lora_rank = {device.lora_rank} is above "
                    f"training.lora_rank = {self.training.lora_rank}, the server's"
                )
        if self.planning.fit_kappa and self.planning.kappa == 0:
            raise ValueError("planning.fit_kappa needs planning.kappa above 0 to begin from")
        if self.planning.fit_kappa and self.participation.rule != "all":
            raise ValueError(
                "planning.fit_kappa goes with participation.rule = 'all' only: "
                "what clients leave undone is not what pruning costs"
            )
        self._check_knobs()
        clients = len(self.client_devices)
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


def names_of_clients(devices: Iterable[DeviceSection]) -> tuple[str, ...]:
    """Return `<profile>-<i>` for each client, i counted within its profile from 1."""
    seen: dict[str, int] = {}
    names = []
    for device in devices:
        stem = Path(device.profile).stem
        seen[stem] = seen.get(stem, 0) + 1
        names.append(f"{stem}-{seen[stem]}")
    return tuple(names)
