"""What a machine lacks for the runs, found before any is begun: each with what to do about it."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from parts import digest_of

from airtune.errors import InputError

PACKAGES = {
    "torch": "2.6", "transformers": "5.23", "peft": "0.18", "safetensors": "0.5", "numpy": "2.0",
    "scipy": "1.12", "pydantic": "2.7", "filelock": "3.13", "jinja2": "3.1", "gguf": "0.17",
}  # fmt: skip
"""What the runs import, with the oldest version that does, and what unpacks a model."""
BENEATH = (
    "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions", "MarkupSafe",
    "huggingface_hub", "httpx2", "httpcore2", "h11", "idna", "truststore", "fsspec", "packaging",
    "PyYAML", "regex", "tokenizers", "tqdm", "accelerate", "sympy", "mpmath",
)  # fmt: skip
"""What those import in their turn, in the versions of `constraints.txt`; others may do without."""
MODULES = (
    "airtune.study.conduct", "airtune.rounds.apart", "airtune.rounds.running",
    "airtune.engines.local", "airtune.models.builtin", "airtune.report",
)  # fmt: skip
"""Of airtune; a run imports these, and with them whatever it needs of others."""
IMPORTS = """
import importlib, json, sys
told = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a package raises where it lacks another
        told.append([name, None, " ".join(f"{type(error).__name__}: {error}".split())[:200]])
        while error is not None and told[-1][1] is None:
            if isinstance(error, ModuleNotFoundError):
                told[-1][1] = error.name
            error = error.__cause__  # Transformers raises an error of its own, without the name
print(json.dumps(told))
"""
CONTEXT_BYTES = 0.7e9
"""Of CUDA and its libraries in each process."""
LEAST_DISK_BYTES = 8e9
"""Converted models, statistics of calibration, checkpoints of the runs that go on."""
GGUF_FILES = {
    "smollm2-135m-instruct": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3-270m": (
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
PRELOAD = ["airtune.rounds.running"]
"""What the server of the runs' processes has loaded before it forks them."""
LOOK_S = 180.0
"""A process that has not said by then what it found will not."""


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


def look(first: Mapping[str, Mapping[str, Any]], folder: Path, *, use_gpu: bool) -> dict[str, Any]:
    """Look for GPU and data where the runs will: in a process forked as theirs are.

    Args:
        first: of each study the scenario of its first run.
        folder: a file of what was found is written there.
        use_gpu: whether a GPU is looked for.

    Returns:
        What `gpu` reads; in `data`, by study, what is missing; in `lacking` what was in the way
        of looking.
    """
    from airtune.study.pools import ProcessPool

    file = folder / "found.json"
    file.unlink(missing_ok=True)
    pool, end = ProcessPool(looked, preload=PRELOAD), time.monotonic() + LOOK_S
    pool.start("look", {"file": str(file), "first": dict(first), "use_gpu": use_gpu})
    ended = pool.ended(1.0)
    while not ended and time.monotonic() < end:
        ended = pool.ended(1.0)
    pool.close()
    try:
        return {"lacking": [], **json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        late = f"it did not answer within {LOOK_S:.0f} s"
        why = (ended["look"] or "it failed as said above") if ended else late
        line = f"a process that looks for GPU and data: {why}"
        return {"data": {}, "lacking": [line]}


def looked(task: Mapping[str, Any]) -> None:
    """Write what `look` asks for; runs in the forked process."""
    told: dict[str, Any] = {"data": {name: _data(one) for name, one in task["first"].items()}}
    if task["use_gpu"]:
        told |= _cuda()
    Path(task["file"]).write_text(json.dumps(told), encoding="utf-8")


def _cuda() -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        import torch

        told |= {"torch": torch.__version__, "cuda_build": torch.version.cuda}
        told["available"] = torch.cuda.is_available()
        if told["available"]:
            told["name"] = torch.cuda.get_device_name(0)
            told["free_bytes"], told["total_bytes"] = torch.cuda.mem_get_info(0)
            told["bfloat16"] = torch.cuda.is_bf16_supported()
            (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()
    except Exception as error:  # whatever a driver or PyTorch raises is what is missing
        told["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]
    return told


def _data(values: Mapping[str, Any]) -> list[str]:
    """Return why a scenario's texts cannot be drawn; [] where they can."""
    from airtune.data.tasks import load_task
    from airtune.scenario import scenario_from_dict

    scenario = scenario_from_dict(values)
    source = scenario.task.source
    if source is not None and not Path(source).exists():
        return [f"data: no folder {source}: carry it as {Path(source).name} below --data"]
    try:
        load_task(scenario.task, seed=scenario.seed)
    except InputError as error:
        return [f"data: {error}"]
    return []


def model(id: str, work: Path) -> list[str]:
    """Return what is missing of a model: its GGUF file and what unpacks it, or its folder."""
    from airtune.models.assets import cache_dir

    if id not in GGUF_FILES:
        folder = Path(id)
        needed = [] if id == "tiny" else ["config.json", "*.safetensors"]
        absent = [name for name in needed if not any(folder.glob(name))]
        return [f"the model's folder {id}: no {' and no '.join(absent)} there"] if absent else []
    if (cache_dir() / "models" / f"{id}-float32" / "complete.json").is_file():
        return []
    name, digest = GGUF_FILES[id]
    file = work / "models" / name
    if not file.is_file():
        return [
            f"the model's file {name} (SHA-256 {digest[:12]}…): carry it, whole or in parts "
            "(--split), below --models"
        ]
    try:
        check_gguf(file)
    except InputError as error:
        file.unlink()  # so that it is taken when it comes again
        return [f"{error}: it was removed there: carry it again"]
    return []


def check_gguf(file: Path) -> None:
    """Refuse a built-in model's file that is another one; raises `InputError`."""
    wanted = dict(GGUF_FILES.values()).get(file.name)
    if wanted is not None and (digest := digest_of(file)) != wanted:
        raise InputError(f"{file}: its SHA-256 is {digest}, not {wanted}")


def size(id: str) -> tuple[float, int]:
    """Return a model's parameters, and its vocabulary."""
    from airtune.models.shapes import SHAPES
    from airtune.study.pools import parameters_of

    parameters = parameters_of(id)
    if parameters is not None:
        return parameters, SHAPES[id].vocab
    folder = Path(id)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return weights / 2, int(config["vocab_size"])


def wheels() -> list[str]:
    """Return what the runs could not import, a line each, and how to fetch it.

    Imports decide, not a list: another version of a package may need others. An import ends with
    the first package that it lacks, so where one fails all of `BENEATH` that are absent are named.
    """
    old = {name: packages([(name, least)]) for name, least in PACKAGES.items()}
    lines = [line for own in old.values() for line in own]
    failed = _imports([*PACKAGES, *MODULES])
    lacking: dict[str, str] = {}
    for name, module, _ in failed:
        if module:
            lacking.setdefault(_distribution(module), name)
    for name in BENEATH if failed else ():
        if not installed(name):
            lacking.setdefault(name, "another package")
    version = ".".join(map(str, sys.version_info[:2]))
    for name, needed_by in lacking.items():
        if installed(name):  # a part of it is not: compiled for another Python
            lines.append(f"{name} is not that of Python {version}: carry its wheel for it")
        elif not old.get(name):
            lines.append(
                f"the Python package {name}, which {needed_by} needs: carry its wheel for Python "
                f"{version}"
            )
    if failed and all(map(installed, (*PACKAGES, *lacking))):  # else these may follow from it
        lines += {text: f"import {name}: {text}" for name, _, text in reversed(failed)}.values()
    names = [*(name for name, own in old.items() if own), *lacking]
    names = [name for name in dict.fromkeys(names) if name != "torch"]
    if names:
        lines.append(f"these wheels; where there is a network: {download(names)}")
    return lines


def download(names: Iterable[str]) -> str:
    """Return the command that fetches wheels for this machine on another one."""
    version = ".".join(map(str, sys.version_info[:2]))
    kind = platform.machine()
    return (
        "python -m pip download --no-deps --only-binary=:all: -d carry/wheels -c constraints.txt "
        f"--python-version {version} --platform manylinux_2_28_{kind} "
        f"--platform manylinux2014_{kind} {' '.join(names)}"
    )


def _imports(names: Iterable[str]) -> list[tuple[str, str | None, str]]:
    """Import modules elsewhere; return which fail, the module that is not there, the error."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *names], capture_output=True, text=True, check=False
    )
    try:
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        return [("of all of these", None, last)]
    return [(name, module, text) for name, module, text in told]


def _distribution(module: str) -> str:
    """Return the package that a module comes with."""
    top = module.split(".")[0]
    known = {name.lower().replace("-", "_"): name for name in (*PACKAGES, *BENEATH)}
    return {"yaml": "PyYAML"}.get(top, known.get(top, top))


def installed(name: str) -> bool:
    """Return whether there is a package of that name."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


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
