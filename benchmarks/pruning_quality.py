"""What pruning costs in learning: one client fine-tunes submodels, the full model is judged.

SmolLM2-135M-Instruct on grade-school maths: rank-8 LoRA on all linear layers of the blocks,
batches of 8 x 160 tokens, 30 AdamW steps at 1e-3. For every way of cutting: loss per answer
token on 48 test problems of the submodel before and after, and of the FULL model with the
adapter put back. Every finished case is written at once; a second start goes on from there.

    python benchmarks/pruning_quality.py --task gsm8k --source ../shared/data/gsm8k
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.adapters.slices import gather_adapter, scatter_adapter
from airtune.assignment import Mode
from airtune.data import encode, eval_batches, load_task, local_batches
from airtune.models.loading import load_model
from airtune.models.precision import speed_up_attention
from airtune.models.workload import (
    StepTokens,
    full_sizes,
    payload_bits,
    realised_pruning,
    training_flops,
)
from airtune.pruning import calibrate, choose, cut
from airtune.pruning.choice import removal_order
from airtune.randomness import derived_seed, generator
from airtune.scenario import ModelSection, TaskSection, TrainingSection
from airtune.training.client import train
from airtune.training.evaluation import answer_loss

OUT = Path(__file__).parent / "results" / "pruning_quality.json"
MODE = Mode(local_steps=1, rank=8, bits_per_value=16)
RATES = (0.2, 0.4, 0.5, 0.6, 0.8)


def cases() -> list[dict[str, Any]]:
    """Every way of cutting that is compared, the most wanted first."""
    out: list[dict[str, Any]] = [{"pruning": 0.0, "units": "mixed", "refit": True}]
    out += [
        {"pruning": rate, "units": "mixed", "refit": True} for rate in (0.5, 0.8, 0.2, 0.6, 0.4)
    ]
    # The whole model for as many steps as cost what the half and the 0.8 submodel cost.
    out += [{"pruning": 0.0, "units": "mixed", "refit": True, "steps": n} for n in (18, 9)]
    out += [{"pruning": rate, "units": "mlp", "refit": True} for rate in (0.5, 0.2, 0.4, 0.6)]
    out += [{"pruning": rate, "units": "blocks", "refit": True} for rate in (0.2, 0.5, 0.4)]
    out += [{"pruning": rate, "units": "mixed", "refit": False} for rate in RATES]
    out += [{"pruning": rate, "units": "blocks", "refit": False} for rate in (0.2, 0.4)]
    return out


def key_of(case: dict[str, Any]) -> tuple[Any, ...]:
    return case["pruning"], case["units"], case["refit"], case.get("steps")


class Bench:
    """Model, batches and statistics that all cases share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.loaded = load_model(ModelSection(dtype=args.dtype), seed=0)
        section = TaskSection(
            name=args.task, source=args.source, train_examples=400, eval_examples=80
        )
        speed_up_attention(self.loaded.model, longest=section.max_tokens)
        task = load_task(section, seed=0)
        examples = encode(task.train, self.loaded.tokenizer, section.max_tokens)
        test = encode(task.test, self.loaded.tokenizer, section.max_tokens)[:48]
        self.tests = eval_batches(test, 16)
        self.calibration = eval_batches(examples[: args.calibration], 8)
        self.training = TrainingSection(local_steps=args.steps, batch_size=8, learning_rate=1e-3)
        self.batches = local_batches(
            examples, batch_size=8, steps=args.steps, rng=generator(0, "batches")
        )
        self.config = lora_config(self.training, self.loaded.lora_targets)
        with adapted(self.loaded.model, self.config, seed=derived_seed(0, "adapter")) as model:
            self.start = values_of(model)
        begun = time.perf_counter()
        self.statistics = calibrate(self.loaded.model, self.loaded.shape, self.calibration)
        self.calibrate_s = time.perf_counter() - begun

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Cut, train, put back, and measure one case."""
        model, shape = self.loaded.model, self.loaded.shape
        structure = choose(self.statistics, shape, case["pruning"], case["units"])
        begun = time.perf_counter()
        submodel = cut(model, shape, structure, self.statistics if case["refit"] else None)
        cut_s = time.perf_counter() - begun
        before = answer_loss(submodel, self.tests)
        steps = case.get("steps", self.args.steps)
        begun = time.perf_counter()
        trained = train(
            submodel,
            self.config,
            gather_adapter(self.start, structure, shape),
            self.batches[:steps],
            self.training,
        )
        train_s = time.perf_counter() - begun
        with adapted(submodel, self.config, trained.adapter) as peft_model:
            after = answer_loss(peft_model, self.tests)
        values, held = scatter_adapter(trained.adapter, structure, shape)
        merged = {k: torch.where(held[k], values[k], self.start[k]) for k in self.start}
        with adapted(model, self.config, merged) as peft_model:
            full = answer_loss(peft_model, self.tests)
        sizes = structure.sizes
        expected = 0.0
        removed = 0
        for step in removal_order(self.statistics, shape, case["units"]):
            if removed >= round(realised_pruning(shape, sizes) * shape.block_parameters):
                break
            removed += step.parameters
            expected += step.harm
        return {
            **case,
            "realised": realised_pruning(shape, sizes),
            "submodel_before": before,
            "submodel_after": after,
            "full_model": full,
            "expected_harm": expected,
            "flops": self._flops(sizes, steps),
            "flops_ratio": self._flops(sizes, steps)
            / self._flops(full_sizes(shape), self.args.steps),
            "payload_ratio": self._bits(sizes) / self._bits(full_sizes(shape)),
            "cut_s": cut_s,
            "train_s": train_s,
        }

    def _flops(self, sizes: Any, steps: int) -> float:
        return sum(
            training_flops(
                self.loaded.shape,
                sizes,
                StepTokens(*batch.input_ids.shape, int((batch.labels != -100).sum())),
                MODE,
            )
            for batch in self.batches[:steps]
        )

    def _bits(self, sizes: Any) -> float:
        return payload_bits(self.loaded.shape, sizes, MODE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--source", default="../shared/data/gsm8k")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--calibration", type=int, default=128, help="texts to calibrate on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--limit", type=int, default=None, help="run at most this many new cases")
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else {"cases": []}
    keys = [key_of(case) for case in done["cases"]]
    todo = [case for case in cases() if key_of(case) not in keys]
    if not todo:
        return
    bench = Bench(args)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    done |= {
        "command": f"python benchmarks/pruning_quality.py --task {args.task}",
        "dtype": args.dtype,
        "steps": args.steps,
        "calibration_examples": args.calibration,
    }
    # It goes on where it stopped, perhaps elsewhere: what a case was made with is its own.
    made_with = {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "calibrate_s": bench.calibrate_s,
    }
    for case in todo[: args.limit]:
        result = bench.run(case) | made_with
        done["cases"].append(result)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(done, indent=1) + "\n")
        print(json.dumps({k: v for k, v in result.items() if k != "flops"}), flush=True)


if __name__ == "__main__":
    main()
