"""What a machine lacks for the runs, found before any is begun: each with what to do about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "torch": "2.6", "transformers": "5.23", "peft": "0.18", "safetensors": "0.5", "numpy": "2.0",
    "scipy": "1.12", "pydantic": "2.7", "filelock": "3.13", "jinja2": "3.1", "matplotlib": "3.9",
}  # fmt: skip
"""What the runs import, with the oldest version that does; `gguf` only to convert a model."""
GGUF = "0.17"
CONTEXT_BYTES = 0.7e9
"""Of CUDA and its libraries in each process."""
LEAST_DISK_BYTES = 8e9
"""Converted models, statistics of calibration, checkpoints of the runs that go on."""
PROBE = """
import json, sys
told = {}
try:
    import torch
    told["torch"] = torch.__version__
    told["cuda_build"] = torch.version.cuda
    told["available"] = torch.cuda.is_available()
    if told["available"]:
        told["name"] = torch.cuda.get_device_name(0)
        told["free_bytes"], told["total_bytes"] = torch.cuda.mem_get_info(0)
        told["bfloat16"] = torch.cuda.is_bf16_supported()
        (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()
except Exception as error:  # whatever a driver or PyTorch raises is what is missing
    told["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device, as a process of its own found it."""

    name: str
    free_bytes: float
    total_bytes: float


def gpu(probed: Mapping[str, Any]) -> tuple[Gpu | None, list[str]]:
    """Return the GPU, or None and what is in the way of it."""
    if probed.get("error"):
        return None, [f"PyTorch with CUDA: {probed['error']}"]
    if not probed.get("cuda_build"):
        return None, [
            f"PyTorch {probed.get('torch')} is built without CUDA: use an interpreter whose "
            "PyTorch has it, or --cpu"
        ]
    if not probed.get("available"):
        return None, [
            f"PyTorch {probed['torch']} for CUDA {probed['cuda_build']} finds no GPU: is there "
            "one, and is its driver new enough for this CUDA (nvidia-smi)?"
        ]
    if not probed.get("bfloat16"):
        return None, [f"{probed['name']} does not compute in bfloat16: --set model.dtype=float32"]
    return Gpu(probed["name"], probed["free_bytes"], probed["total_bytes"]), []


def probe() -> dict[str, Any]:
    """Ask PyTorch of the GPU in a process of its own: this one must not open CUDA."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        return {"error": last}


def packages(needed: Iterable[tuple[str, str]]) -> list[str]:
    """Return the packages that are missing or too old, a line each."""
    lines = []
    for name, least in needed:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            lines.append(f"the Python package {name} (at least {least}): carry its wheel")
            continue
        if _numbers(found) < _numbers(least):
            lines.append(
                f"{name} {found} is too old (at least {least}): carry a wheel of a newer one"
            )
    return lines


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdecimal())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def disk(folder: Path, needed_bytes: float) -> list[str]:
    """Say so where a folder's disk has too little room."""
    free = shutil.disk_usage(folder).free
    if free >= needed_bytes:
        return []
    return [
        f"{folder}: {free / 1e9:.1f} GB free, {needed_bytes / 1e9:.0f} GB needed: another --work"
    ]


def run_bytes(values: Mapping[str, Any], parameters: float, vocab: int) -> float:
    """Estimate what a run takes of a GPU's memory: model, submodel, logits, what backward keeps.

    Logits are there for answer tokens alone, at most those of a text; in float32, four times
    (themselves, their gradient, the log-softmax, the product's own). Above what was needed on the
    sizes that it was written for; nothing here has been measured on a GPU yet.
    """
    task, training, evaluation = values["task"], values["training"], values["evaluation"]
    value_bytes = 2 if values["model"]["dtype"] == "bfloat16" else 4
    weights = 3.0 * value_bytes * parameters
    rows = max(training["batch_size"], evaluation["batch_size"])
    logits = 4.0 * 4.0 * rows * task["max_tokens"] * vocab
    # Activations of a step: some 40 values a token for each of a block's channels.
    kept = 4e4 * 30 * value_bytes * training["batch_size"] * task["max_tokens"]
    return CONTEXT_BYTES + weights + logits + kept


def runs_at_once(free_bytes: float, each_bytes: float, cores: int) -> int:
    """Return how many runs share the GPU: by memory, with a tenth left free, and by cores."""
    return max(0, min(int(0.9 * free_bytes / each_bytes), cores))
