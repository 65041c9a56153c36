"""Messages between server and device: what fits, and everything that does not."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from airtune.deploy.protocol import (
    Hello,
    Introduction,
    Job,
    ProtocolError,
    Refusal,
    Update,
    agreement,
    disagreement,
    kind_of,
    norm,
    pack,
    to_air,
    unpack,
)
from airtune.scenario import load_scenario

UPDATE: dict[str, Any] = {
    "run": "run-1",
    "round": 3,
    "client": "pi-1",
    "examples": 64,
    "train_loss": 1.5,
    "compute_s": 2.0,
    "next_steps": [{"rows": 4, "length": 20, "label_tokens": 8}],
}


def packed(values: Any, arrays: dict[str, np.ndarray] | None = None) -> bytes:
    """Write a message without the checks of its kind."""
    return safetensors.numpy.save(arrays or {}, metadata={"airtune": json.dumps(values)})


def test_messages_come_back_as_they_went() -> None:
    fields = Update.model_validate(UPDATE)
    arrays = {
        "adapter/b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "adapter/a": np.float32([[1.5, np.nan]]),
        "kept": np.arange(4, dtype=np.uint8),
    }
    body = pack(fields, arrays)
    assert body == pack(fields, dict(reversed(arrays.items())))
    assert kind_of(body) == "update"
    back, same = unpack(body, Update)
    assert back == fields
    assert same.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(same[name], array)
        assert same[name].dtype == array.dtype


def test_messages_without_arrays() -> None:
    body = pack(Refusal(reason="because"))
    assert unpack(body, Refusal) == (Refusal(reason="because"), {})
    with pytest.raises(ProtocolError, match="'refusal' where 'job' belongs"):
        unpack(body, Job)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(body, Update)


@given(data=st.data())
def test_a_damaged_message_is_refused_or_still_one(data: st.DataObject) -> None:
    body = bytearray(pack(Update.model_validate(UPDATE), {"kept": np.zeros(8, np.uint8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    with contextlib.suppress(ProtocolError):
        unpack(bytes(body[:cut]), Update)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", 0),
        ("round", "3"),
        ("round", 3.0),
        ("examples", 0),
        ("examples", True),
        ("client", "../../etc/passwd"),
        ("client", ""),
        ("train_loss", "low"),
        ("compute_s", -1.0),
        ("next_steps", [{"rows": 0, "length": 1, "label_tokens": 1}]),
        ("next_steps", [{"rows": 1, "length": 1, "label_tokens": 1, "file": "/etc/passwd"}]),
        ("code", "import os"),
    ],
)
def test_fields_have_types_and_ranges(field: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=rf"update\.{field}"):
        unpack(packed({"kind": "update", **UPDATE, field: value}), Update)


def test_infinity_is_not_json_and_not_a_number() -> None:
    for number in ("NaN", "Infinity", "1e999"):
        text = json.dumps({"kind": "update", **UPDATE}).replace("2.0", number)
        body = safetensors.numpy.save({}, metadata={"airtune": text})
        with pytest.raises(ProtocolError, match="compute_s"):
            unpack(body, Update)


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool"])
def test_arrays_are_of_three_types(dtype: str) -> None:
    body = packed({"kind": "update", **UPDATE}, {"adapter/a": np.zeros(3, dtype)})
    with pytest.raises(ProtocolError, match=dtype):
        unpack(body, Update)


def test_a_header_that_promises_more_than_there_is() -> None:
    with pytest.raises(ProtocolError, match="longer than the message"):
        unpack(struct.pack("<Q", 2**63) + b"{}", Update)
    with pytest.raises(ProtocolError, match="too short"):
        unpack(b"", Update)
    for values in ([], "text", None, 3):
        with pytest.raises(ProtocolError):
            unpack(packed(values), Update)


def test_both_ends_agree_on_what_training_depends_on() -> None:
    own = agreement(load_scenario("tiny"))
    assert disagreement(own, agreement(load_scenario("tiny"))) is None
    for override, key in (
        ("seed=7", "seed"),
        ("training.local_steps=9", "training.local_steps"),
        ("task.train_examples=128", "task.train_examples"),
        ("devices.0.count=1", "clients"),
        ("aggregation.payload_bits_per_value=32", "aggregation.payload_bits_per_value"),
    ):
        difference = disagreement(own, agreement(load_scenario("tiny", [override])))
        assert difference is not None
        assert difference.startswith(f"{key} is ")
    for override in ("cell.radius_m=400", "planning.kappa=0.1", "rounds=9", "model.id=elsewhere"):
        assert agreement(load_scenario("tiny", [override])) == own
    falls = "training.learning_rate_schedule=linear"
    shorter, longer = (agreement(load_scenario("tiny", [falls, f"rounds={n}"])) for n in (2, 9))
    assert str(disagreement(shorter, longer)).startswith("rounds is 2")
    missing = {key: value for key, value in own.items() if key != "seed"}
    assert "seed is None at the device" in str(disagreement(missing, own))


def test_both_ends_agree_on_labels_that_some_devices_alone_hold() -> None:
    dirichlet = "partition.kind=dirichlet"

    def asked(*labels: str) -> dict[str, str]:
        only = f"devices.1.only_labels={json.dumps(labels)}"
        return agreement(load_scenario("tiny", [dirichlet, only]))

    own = agreement(load_scenario("tiny", [dirichlet]))
    name = load_scenario("tiny").client_names[2]
    assert f'only_labels of {name} is None at the device and ["a"] at the server' in str(
        disagreement(own, asked("a"))
    )
    assert disagreement(asked("a"), asked("a")) is None
    assert disagreement(asked("a", "b"), asked("b", "a")) is not None
    many = [f"a label of some length {i}" for i in range(300)]
    assert disagreement(asked(*many), asked(*many[:-1], "other")) is not None
    hello = Hello(version="0.1.0", run="r", scenario=asked(*many))  # whose texts are limited
    assert unpack(pack(hello), Hello)[0] == hello


def test_hello_and_introduction_survive_the_way() -> None:
    hello = Hello(version="0.1.0", run="r", scenario=agreement(load_scenario("tiny")))
    assert unpack(pack(hello), Hello)[0] == hello
    own = Introduction(
        protocol=1,
        version="0.1.0",
        client="pi-1",
        model_fingerprint="f",
        examples=3,
        labels={"1": 2},
        pruning_cost=[(0.0, 0.0), (0.5, 0.2)],
        profile="raspberry-pi-5",
        effective_flops=1e9,
        memory_bytes=8e9,
        next_steps=[],
    )
    assert unpack(pack(own), Introduction)[0] == own


def test_sixteen_bits_do_not_overflow() -> None:
    sent = to_air(np.float32([1e6, -1e6, 1.0009765]), 16)
    assert sent.dtype == np.float16
    np.testing.assert_array_equal(sent, np.float16([65504, -65504, 1.0009765]))
    assert np.isnan(to_air(np.float32([np.nan]), 16)).all()
    whole = to_air(np.float32([1.1]), 32)
    assert whole.dtype == np.float32
    assert norm({"a": np.float16([3]), "b": np.float16([4])}) == 5.0
