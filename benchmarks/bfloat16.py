"""Seconds of a training step in bfloat16, with this processor's products and in float32.

SmolLM2-135M-Instruct, one batch of 4 x 28 random tokens, steps in turn. `plain` multiplies in
bfloat16, `wide` in float32 with every product rounded (airtune.models.precision): the program takes
`plain` where the processor has instructions for bfloat16. `float32` is a model of that dtype.

    python benchmarks/bfloat16.py
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import sys
from pathlib import Path

import torch

from airtune.models import precision
from airtune.models.loading import load_model
from airtune.scenario import ModelSection
from airtune.training.profiling import measure

OUT = Path(__file__).parent / "results" / "bfloat16.json"
ROWS, LENGTH, RANK = 4, 28, 2


def main() -> None:
    """Print and write the medians, and their ratios to `plain`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    has_bfloat16 = precision._has_bfloat16()
    models = {
        dtype: load_model(ModelSection(dtype=dtype), seed=0) for dtype in ("float32", "bfloat16")
    }
    seconds: dict[str, list[float]] = {"plain": [], "wide": [], "float32": []}
    for _ in range(given.repeats):
        for name, taken in seconds.items():
            plain = name == "plain"
            precision._has_bfloat16 = lambda plain=plain: plain  # type: ignore[assignment,misc]
            model = models.get(name, models["bfloat16"])
            (step,) = measure(model, [0.0], rows=ROWS, length=LENGTH, lora_rank=RANK, repeats=1)
            taken.append(step.seconds)
    medians = {name: stats.median(taken) for name, taken in seconds.items()}
    result = {
        "command": "python " + " ".join(["benchmarks/bfloat16.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "has_bfloat16": has_bfloat16,
        "rows": ROWS,
        "length": LENGTH,
        "seconds": medians,
        "ratios": {name: value / medians["plain"] for name, value in medians.items()},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"]))


if __name__ == "__main__":
    main()
