"""What server and device say to each other: typed fields and arrays in one safetensors file.

A message is a safetensors file whose metadata holds the fields as JSON and whose tensors are
the arrays. Nothing in it can name a file or code: fields have fixed names, types and ranges,
arrays are numbers. Whatever does not fit is refused before anything else looks at it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from airtune.assignment import Assignment, Mode
from airtune.models.workload import KeptSizes
from airtune.scenario import Scenario

PROTOCOL = 4
"""Raised with every change that an older device would misread."""
MAX_HEADER_BYTES = 16 * 2**20
MOST_ENTRIES = 4096
"""Of a list or a table in a message: steps of a round, labels, keys of a scenario."""
MOST_TEXT = 2000
"""Characters of a text in a message."""


def plain(text: str) -> str:
    """Return text on one line without control characters: it goes into logs and to terminals.

    What Unicode calls not printable (escape codes, line ends, marks that turn the direction of
    writing) becomes a space.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


Arrays = dict[str, np.ndarray]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Count = Annotated[int, Field(ge=0, lt=2**40)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Line = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ProtocolError(ValueError):
    """A message that cannot be what it says; one line that says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(plain(reason)[:400])


class Fields(BaseModel):
    """The fields of one kind of message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hello(Fields):
    """Server to device: introduce yourself, if we mean the same run."""

    kind: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    version: Line
    """airtune's version at the server."""
    run: Name
    """Names this run; a device keeps nothing from one run to the next."""
    scenario: Annotated[dict[str, Text], Field(max_length=MOST_ENTRIES)]
    """What both ends must agree on, as JSON by key path; see `agreement`."""


class Step(Fields):
    """The size of one local step, as in `airtune.models.workload.StepTokens`."""

    rows: Annotated[int, Field(ge=1, lt=2**20)]
    length: Annotated[int, Field(ge=1, lt=2**24)]
    label_tokens: Count


Steps = Annotated[list[Step], Field(max_length=MOST_ENTRIES)]


class Privacy(Fields):
    """How a device protects its updates; see `airtune.deploy.privacy`."""

    clip: Positive
    """C, the largest L2 norm of a round's change."""
    noise_multiplier: Positive
    """z: the noise has standard deviation z C in every value."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Positive | None = None
    """The device refuses rounds that would spend more."""


class Introduction(Fields):
    """Device to server: what planning has to know of it."""

    kind: Literal["introduction"] = "introduction"
    protocol: int
    version: Line
    client: Name
    """The scenario's client whose data it holds."""
    model_fingerprint: Line
    examples: Annotated[int, Field(ge=1, lt=2**40)]
    labels: Annotated[dict[Line, Count], Field(max_length=MOST_ENTRIES)]
    """Examples by label; empty with privacy."""
    pruning_cost: Annotated[list[tuple[Share, Finite]], Field(max_length=MOST_ENTRIES)] | None
    most_pruned: Annotated[list[tuple[Count, Count]], Field(max_length=MOST_ENTRIES)] | None = None
    """Channels and groups that each block keeps at pruning.max_pruning, where costs are measured:
    the end of the plan's cost line."""
    profile: Line
    """Its kind of device."""
    effective_flops: Positive
    """Measured on the model itself, FLOP/s."""
    memory_bytes: Positive
    next_steps: Steps
    """The sizes of the first round's steps, for its plan; empty with privacy."""
    privacy: Privacy | None = None


class Base(Fields):
    """The adapter whose change a job carries: what the device began an earlier round with."""

    round: Annotated[int, Field(ge=1)]
    sha256: Sha256
    """Of the ranks and factors that change (`codec.adapter_sha256`)."""


class Job(Fields):
    """Server to device: one round's work.

    The arrays are the full model's adapter, or its change where there is a `base`.
    """

    kind: Literal["job"] = "job"
    run: Name
    round: Annotated[int, Field(ge=1)]
    pruning: Share
    local_steps: Annotated[int, Field(ge=1, lt=2**20)]
    rank: Annotated[int, Field(ge=1, lt=2**16)]
    bits_per_value: Annotated[int, Field(ge=2, le=32)]
    bits_per_scale: Annotated[int, Field(ge=0, le=32)]
    freezes_a: bool
    bandwidth_hz: Positive
    uplink_bps: Positive
    """What the upload may take of the band, bit/s."""
    downlink_bps: Positive
    """The broadcast's rate, bit/s."""
    downlink_bits: Positive
    """What this device needs of it."""
    change_bits: Literal[2, 4, 8] | None = None
    """Given: keep the adapter that you begin with, and say its hash; changes come in these bits."""
    base: Base | None = None


def job_fields(
    run: str,
    round: int,
    assignment: Assignment,
    change_bits: Literal[2, 4, 8] | None = None,
    base: Base | None = None,
) -> Job:
    """Return the message that tells a device its assignment, and what its arrays are."""
    mode = assignment.mode
    return Job(
        run=run,
        round=round,
        pruning=assignment.pruning,
        local_steps=mode.local_steps,
        rank=mode.rank,
        bits_per_value=mode.bits_per_value,
        bits_per_scale=mode.bits_per_scale,
        freezes_a=mode.freezes_a,
        bandwidth_hz=assignment.bandwidth_hz,
        uplink_bps=assignment.rate_bps,
        downlink_bps=assignment.downlink_rate_bps,
        downlink_bits=assignment.downlink_bits,
        change_bits=change_bits,
        base=base,
    )


def assignment_of(job: Job, client: int) -> Assignment:
    """Return the assignment that a message tells; the plan's times stay with the server."""
    return Assignment(
        client=client,
        mode=Mode(
            local_steps=job.local_steps,
            rank=job.rank,
            bits_per_value=job.bits_per_value,
            bits_per_scale=job.bits_per_scale,
            freezes_a=job.freezes_a,
        ),
        pruning=job.pruning,
        bandwidth_hz=job.bandwidth_hz,
        rate_bps=job.uplink_bps,
        downlink_rate_bps=job.downlink_bps,
        downlink_bits=job.downlink_bits,
    )


class Update(Fields):
    """Device to server: the submodel's adapter and the bitmap of what it kept."""

    kind: Literal["update"] = "update"
    run: Name
    round: Annotated[int, Field(ge=1)]
    client: Name
    examples: Annotated[int, Field(ge=1, lt=2**40)]
    train_loss: float | None
    """None where privacy keeps it on the device."""
    compute_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    next_steps: Steps
    """The sizes of the next round's steps, for its plan; empty with privacy."""
    epsilon: Positive | None = None
    """Privacy spent so far, this update included; None without privacy."""
    emulated_s: Positive | None = None
    """The time that the device's profile counts for this work; None where none is emulated."""
    held_sha256: Sha256 | None = None
    """Of the adapter that it began with, where the job asks for it."""


class Refusal(Fields):
    """Device to server: why it cannot do what was asked."""

    kind: Literal["refusal"] = "refusal"
    reason: Text


Message = TypeVar("Message", bound=Fields)


def pack(fields: Fields, arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Return the message as bytes; equal messages are equal bytes."""
    metadata = {"airtune": fields.model_dump_json()}
    return safetensors.numpy.save(dict(sorted((arrays or {}).items())), metadata=metadata)


def parts_of(body: bytes) -> tuple[bytes, bytes]:
    """Return a message of `pack` as its header and the values of its arrays, which follow it."""
    (size,) = struct.unpack("<Q", body[:8])
    return body[: 8 + size], body[8 + size :]


def kind_of(body: bytes) -> str:
    """Return what kind of message it says it is; raises `ProtocolError`."""
    kind = _fields(body).get("kind")
    if not isinstance(kind, str):
        raise ProtocolError("the message does not say its kind")
    return kind


def unpack(body: bytes, kind: type[Message]) -> tuple[Message, Arrays]:
    """Check a message of an expected kind and return its fields and arrays.

    Raises:
        ProtocolError: it is not a safetensors file, is another kind, or a field or an array
            is not what it may be.
    """
    values = _fields(body)
    expected = kind.model_fields["kind"].default
    if values.get("kind") != expected:
        raise ProtocolError(f"a message of kind {values.get('kind')!r} where {expected!r} belongs")
    try:
        # JSON mode: its lists become tuples where the type says so, everything else is strict.
        fields = kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"{expected}.{where}: {first['msg']}") from None
    try:
        arrays = safetensors.numpy.load(body)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"its arrays cannot be read: {error}") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.uint8):
            raise ProtocolError(f"array {name[:80]!r} is {array.dtype}: float16, float32 or uint8")
    return fields, arrays


def _fields(body: bytes) -> dict[str, Any]:
    # The header alone: which arrays there are does not matter yet.
    if len(body) < 8:
        raise ProtocolError("too short to be a message")
    (size,) = struct.unpack("<Q", body[:8])
    if size > min(MAX_HEADER_BYTES, len(body) - 8):
        raise ProtocolError("its header is longer than the message")
    try:
        header = json.loads(body[8 : 8 + size])
        values = json.loads(header["__metadata__"]["airtune"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("not a message of airtune") from None
    if not isinstance(values, dict):
        raise ProtocolError("not a message of airtune")
    return values


_LOCAL_KEYS = ("model.id", "model.gguf_file", "task.source", "pruning.cache_statistics")
"""Where a file lies may differ from machine to machine; the model's fingerprint must not."""


def agreement(scenario: Scenario) -> dict[str, str]:
    """Return what server and devices must agree on, as JSON text by key path.

    The cell, the planner and the device profiles are the server's business alone.
    """
    values = scenario.model_dump(mode="json")
    agreed: dict[str, str] = {
        "seed": json.dumps(values["seed"]),
        "clients": json.dumps(list(scenario.client_names)),
    }
    for section in ("model", "task", "partition", "training", "pruning"):
        for key, value in values[section].items():
            if (path := f"{section}.{key}") not in _LOCAL_KEYS:
                agreed[path] = json.dumps(value)
    for name, device in zip(scenario.client_names, scenario.client_devices, strict=True):
        if device.only_labels:  # in their order: it decides who draws first
            agreed[f"only_labels of {name}"] = _short(json.dumps(list(device.only_labels)))
    if scenario.training.learning_rate_schedule != "constant":
        # A device's rate falls over the rounds that its own file names.
        agreed["rounds"] = json.dumps(values["rounds"])
    bits = values["aggregation"]["payload_bits_per_value"]
    agreed["aggregation.payload_bits_per_value"] = json.dumps(bits)
    return agreed


def _short(text: str) -> str:
    """Return text, or its digest where a message would not take it."""
    if len(text) <= MOST_TEXT:
        return text
    return f"{text[:80]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()})"


def disagreement(own: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Name the first key on which device (`own`) and server (`other`) differ, or None."""
    for key in sorted(own.keys() | other.keys()):
        if own.get(key) != other.get(key):
            return f"{key} is {own.get(key)} at the device and {other.get(key)} at the server"
    return None


def to_air(values: np.ndarray, bits_per_value: int) -> np.ndarray:
    """Return values in the precision in which they are sent.

    float16's largest number is 65504; what lies beyond is sent as that, not as infinity.
    """
    if bits_per_value == 32:
        return np.ascontiguousarray(values, dtype=np.float32)
    most = float(np.finfo(np.float16).max)
    return np.clip(values, -most, most).astype(np.float16)


def kept_pairs(sizes: KeptSizes) -> list[tuple[int, int]]:
    """Return a submodel's sizes as a message has them: channels and groups, a block each."""
    return list(zip(sizes.mlp_channels, sizes.kv_groups, strict=True))


def norm(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the L2 norm of all values together."""
    squares = (float(np.sum(np.square(a, dtype=np.float64))) for a in arrays.values())
    return math.sqrt(sum(squares))
