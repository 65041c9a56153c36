"""What an engine cannot have is refused before anything waits for it."""

from __future__ import annotations

import os
import socket

import pytest

from airtune.engines.choice import engine_maker
from airtune.engines.ray import _check_answers, _check_resources
from airtune.errors import InputError


def test_more_threads_than_the_machine_has() -> None:
    cores = os.cpu_count() or 1
    for engine in ("local", "ray"):
        with pytest.raises(InputError, match=f"--threads {cores + 1}: this machine has {cores}"):
            engine_maker(engine, threads=cores + 1)


def test_a_share_of_a_gpu_is_of_ray() -> None:
    with pytest.raises(InputError, match=r"--gpus-per-worker 0\.5: only with --engine ray"):
        engine_maker("local", gpus_per_worker=0.5)


@pytest.mark.parametrize(
    ("there", "workers", "share", "address", "said"),
    [
        ({"CPU": 8.0}, 1, 0.25, None, "the 0 GPUs that this machine has, which is room for 0"),
        ({"CPU": 8.0, "GPU": 1.0}, 5, 0.25, None, "which is room for 4"),
        ({"CPU": 8.0, "GPU": 2.0}, 3, 0.7, None, "which is room for 2"),
        ({"CPU": 8.0, "GPU": 4.0}, 3, 2.0, "h:1", "the cluster at 'h:1' has, which is room for 2"),
        ({"CPU": 2.0}, 3, 0.0, "h:1", "--workers 3: the cluster at 'h:1' has 2 CPUs"),
    ],
)
def test_workers_without_room_are_refused(
    there: dict[str, float], workers: int, share: float, address: str | None, said: str
) -> None:
    with pytest.raises(InputError) as error:
        _check_resources(there, workers, share, address)
    assert said in str(error.value)
    _check_resources(there, 0, share, address)


def test_workers_that_just_fit_are_not() -> None:
    _check_resources({"CPU": 1.0, "GPU": 1.0}, 4, 0.25, None)
    _check_resources({"CPU": 1.0, "GPU": 1.0}, 10, 0.1, None)
    _check_resources({"CPU": 3.0}, 3, 0.0, "h:1")
    _check_resources({"CPU": 1.0}, 3, 0.0, None)  # here a worker takes no CPU of Ray's


def test_an_address_where_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(InputError) as error:
            _check_answers(address)
        assert f"no Ray cluster at '{address}'" in str(error.value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _check_answers(f"127.0.0.1:{server.getsockname()[1]}")
    _check_answers("auto")
