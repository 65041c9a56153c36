"""Random streams: independent by purpose, round and client, and the same in every process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from airtune.randomness import derived_seed, generator


def draws(**names: int) -> list[float]:
    return list(generator(7, "fading", **names).random(4))


def test_the_same_name_gives_the_same_stream() -> None:
    assert draws(round=2, client=1) == draws(round=2, client=1)


def test_every_part_of_the_name_gives_another_stream() -> None:
    streams = [
        draws(),
        draws(round=1),
        draws(client=1),
        draws(round=1, client=1),
        list(generator(8, "fading").random(4)),
        list(generator(7, "shadowing").random(4)),
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_the_stream_does_not_depend_on_the_process() -> None:
    # Python's own string hash is salted per process; a seed made of it would not survive here.
    code = "from airtune.randomness import derived_seed; print(derived_seed(3, 'x', round=2))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) == derived_seed(3, "x", round=2)


def test_neighbouring_rounds_are_uncorrelated() -> None:
    first = generator(0, "fading", round=1).standard_normal(20_000)
    second = generator(0, "fading", round=2).standard_normal(20_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_derived_seed_is_a_63_bit_integer() -> None:
    seeds = [derived_seed(0, "adapter", client=client) for client in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61
