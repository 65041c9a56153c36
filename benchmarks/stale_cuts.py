"""How well submodels still stand for the model after rounds of training.

Submodels are cut and refitted by statistics of the model as it was before training. With the
adapter of a finished run: the loss of each client's training texts in the full model, in such
submodels of it, and in submodels that are refitted by statistics read again. Where a pruned
client's texts have a low loss in its submodel and a high one in the full model, it has nothing
left to learn from them, and the full model has not learnt them.

    python benchmarks/stale_cuts.py runs/clinc150-memory

docs/pruning.md has the command of that run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from airtune.adapters.lora import adapted, lora_config, merged_into_base
from airtune.adapters.names import Adapter, rank_of
from airtune.adapters.slices import gather_adapter
from airtune.data import Batch, encode, eval_batches, load_task
from airtune.models.loading import load_model
from airtune.models.precision import speed_up_attention
from airtune.pruning import calibrate, choose, cut
from airtune.pruning.rereading import reread
from airtune.record import read_record
from airtune.scenario import Scenario
from airtune.training.evaluation import answer_loss
from airtune.training.worker import Worker

OUT = Path(__file__).parent / "results" / "stale_cuts.json"
FEW_TEXTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="+", help="folder of a finished run")
    parser.add_argument("--rates", default="0.2,0.4,0.6", help="pruning rates")
    parser.add_argument("--batches", type=int, default=8, help="of a client's training texts")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rates = [float(text) for text in args.rates.split(",")]
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/stale_cuts.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "runs": [],
    }
    for folder in args.run:
        result["runs"].append(measured(folder, rates, args.batches))
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(folder: Path, rates: Sequence[float], steps: int) -> dict[str, Any]:
    """Return the losses of a run's clients, (clients,) each, by model and rate."""
    record = read_record(folder)
    scenario = Scenario.model_validate(record.scenario)
    adapter: Adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    section, limit = scenario.training, scenario.task.max_tokens
    loaded = load_model(scenario.model, seed=scenario.seed, max_tokens=limit)
    model, shape = loaded.model, loaded.shape
    speed_up_attention(model, longest=limit)
    task = load_task(scenario.task, seed=scenario.seed, tokenizer=loaded.tokenizer)
    own = encode(task.train[: scenario.pruning.calibration_examples], loaded.tokenizer, limit)
    texts = eval_batches(own, scenario.evaluation.batch_size)
    worker = Worker(scenario, device="cpu")
    # Of a round that was not run: drawn like the others, from the clients' training texts.
    drawn = [
        worker.batches(scenario.rounds + 1, client, steps)
        for client in range(len(scenario.client_devices))
    ]
    config = lora_config(section, loaded.lora_targets, rank_of(adapter))
    scale, units = section.lora_scale, scenario.pruning.units

    before = calibrate(model, shape, texts, stand_ins=False)
    losses: dict[str, list[float]] = {}
    with adapted(model, config, adapter) as whole:
        losses["full model"] = _losses(whole, drawn)
    for rate in rates:
        structure = choose(before, shape, rate, units)
        submodel = cut(model, shape, structure, before)
        with adapted(submodel, config, gather_adapter(adapter, structure, shape)) as placed:
            losses[f"{rate:g}, read before training"] = _losses(placed, drawn)
    with merged_into_base(model, adapter, scale):
        for count in (FEW_TEXTS, len(own)):
            batches = eval_batches(own[:count], scenario.evaluation.batch_size)
            again = reread(before, model, shape, batches)
            for rate in rates:
                submodel = cut(model, shape, choose(again, shape, rate, units), again)
                losses[f"{rate:g}, {count} texts read again"] = _losses(submodel, drawn)
    for name, values in losses.items():
        print(f"{name:30}", *(f"{value:6.2f}" for value in values), flush=True)
    rows = [one for one in record.rounds if one.clients]
    return {
        "selection": scenario.pruning.selection,
        "seed": scenario.seed,
        "rounds": len(record.rounds),
        "clients": list(scenario.client_names),
        "mean_pruning": [
            _mean([row.clients[k].pruning for row in rows]) for k in range(len(drawn))
        ],
        "losses": {name: [round(v, 4) for v in values] for name, values in losses.items()},
    }


def _losses(model: nn.Module, drawn: Sequence[Sequence[Batch]]) -> list[float]:
    return [answer_loss(model, batches) for batches in drawn]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known else None


if __name__ == "__main__":
    main()
