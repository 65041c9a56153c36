"""No tensor operation of a run mixes devices: the cases of `fake_cuda_cases.py`, without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("fake_cuda_cases.py")


FEW = "computes or choices or rolling"
"""Cases that are not slow: whole rounds, pruned, in few bits and bfloat16; generation; scores."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/test_cuda.py")
@pytest.mark.parametrize(
    ("chosen", "least"), [(("-k", FEW), 3), pytest.param((), 9, marks=pytest.mark.slow)]
)
def test_no_operation_of_a_run_mixes_devices(chosen: tuple[str, ...], least: int) -> None:
    """In a process of their own: autograd counts the devices once, at its first backward pass."""
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider", *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=CASES.parents[1]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    # Fewer than there are would see nothing of what was left out.
    passed = re.search(r"(\d+) passed", done.stdout)
    skipped = "no such guards and hooks" in done.stdout
    assert skipped or (passed is not None and int(passed[1]) >= least)
