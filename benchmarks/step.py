"""Seconds and peak memory of a training step against the pruning rate, beside counted FLOPs.

SmolLM2-135M-Instruct, rank-8 LoRA on all linear layers of the blocks, one batch of 8 x 160
random tokens with labels on half of them. At rate 0 also plain Transformers + PEFT, whose loss
computes logits at every token. Peak memory is the process's, so each rate has a process of its
own; times are taken in one process, in turn.

    python benchmarks/step.py
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics as stats
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from airtune.assignment import Mode
from airtune.models.loading import load_model
from airtune.models.workload import StepTokens, full_sizes, memory_bytes, uniform_sizes
from airtune.pruning import cut
from airtune.scenario import ModelSection
from airtune.training.profiling import first_units, measure

OUT = Path(__file__).parent / "results" / "step.json"
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
ROWS, LENGTH, RANK = 8, 160, 8
MODE = Mode(local_steps=1, rank=RANK, bits_per_value=16)


def plain_over_ours(loaded: Any, repeats: int) -> float:
    """Return the median ratio of a plain Transformers + PEFT step to ours, taken in turn."""
    ratios = []
    for _ in range(repeats):
        (ours,) = measure(loaded, [0.0], rows=ROWS, length=LENGTH, lora_rank=RANK, repeats=1)
        ratios.append(plain_step_s(loaded) / ours.seconds)
    return stats.median(ratios)


def plain_step_s(loaded: Any) -> float:
    """Return the seconds of the same step with plain Transformers + PEFT, after a first one."""
    targets = list(loaded.lora_targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            cut(loaded.model, loaded.shape, first_units(full_sizes(loaded.shape))),
            LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM"),
        )
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, loaded.shape.vocab, (ROWS, LENGTH), generator=rng)
    labels = ids.clone()
    labels[:, : LENGTH // 2] = -100
    for _ in range(2):
        begun = time.perf_counter()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        loss = cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].ravel())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - begun
    return seconds


def peak_bytes(rate: float, dtype: str) -> dict[str, float]:
    """Return a fresh process's peak memory before and after a step at a rate."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import step; step.print_peak(float(sys.argv[2]), sys.argv[3])"
    )
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, folder, str(rate), dtype]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(ended.stdout)
    return result


def _peak_resident() -> int:
    # Not getrusage: its maximum is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def print_peak(rate: float, dtype: str) -> None:
    loaded = load_model(ModelSection(dtype=dtype), seed=0)
    before = _peak_resident()
    measure(loaded, [rate], rows=ROWS, length=LENGTH, lora_rank=RANK, repeats=1)
    after = _peak_resident()
    print(json.dumps({"loaded_bytes": before, "peak_bytes": after}))


def base_copies(loaded: Any, clients: int) -> dict[str, float]:
    """Return the weights that several submodels hold that are not the base model's own."""
    own = {t.data_ptr() for t in loaded.model.parameters()}
    sizes = {"base_bytes": sum(t.nbytes for t in loaded.model.parameters())}
    for rate in (0.0, 0.5):
        structure = first_units(uniform_sizes(loaded.shape, rate))
        models = [cut(loaded.model, loaded.shape, structure) for _ in range(clients)]
        extra = {t.data_ptr(): t.nbytes for m in models for t in m.parameters()}
        sizes[f"extra_bytes_{clients}_clients_at_{rate:g}"] = float(
            sum(size for pointer, size in extra.items() if pointer not in own)
        )
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    loaded = load_model(ModelSection(dtype=args.dtype), seed=0)
    steps = measure(loaded, RATES, rows=ROWS, length=LENGTH, lora_rank=RANK, repeats=args.repeats)
    plain = plain_over_ours(loaded, args.repeats)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    tokens = StepTokens(ROWS, LENGTH, ROWS * LENGTH // 2)
    width = 4 if args.dtype == "float32" else 2
    results = []
    for rate, step in zip(RATES, steps, strict=True):
        sizes = uniform_sizes(loaded.shape, rate)
        time_ratio = step.seconds / steps[0].seconds
        flop_ratio = step.flops / steps[0].flops
        results.append(
            {
                "pruning": step.pruning,
                "seconds": step.seconds,
                "flops": step.flops,
                "time_ratio": time_ratio,
                "flop_ratio": flop_ratio,
                "time_over_flops": time_ratio / flop_ratio,
                **peak_bytes(rate, args.dtype),
                "estimated_bytes": memory_bytes(
                    loaded.shape, sizes, tokens, MODE, bytes_per_weight=width
                ),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    report = {
        "command": f"python benchmarks/step.py --dtype {args.dtype}",
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "dtype": args.dtype,
        "rows": ROWS,
        "length": LENGTH,
        "plain_over_ours_at_zero": plain,
        "weights": base_copies(loaded, 8),
        "rates": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
