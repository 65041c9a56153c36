"""Memory that calibration takes above the model, with statistics held or mapped from their files.

A Llama of random bfloat16 weights and any width; by default blocks as wide as those of a model
of 7 B parameters, which take minutes each on two cores. Each way has a process of its own; what
counts is anonymous memory (RssAnon), which a mapped file is not part of.

    python benchmarks/calibration.py --hidden 2048 --channels 5504 --blocks 3,9
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.data import Batch
from airtune.models.loading import shape_of
from airtune.pruning import cached_calibration, calibrate

OUT = Path(__file__).parent / "results" / "calibration.json"
VOCABULARY, ROWS, LENGTH = 1000, 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", default="2,6", help="numbers of blocks, separated by commas")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=11008)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs=2, metavar=("BLOCKS", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        blocks, way = args.one
        print(json.dumps(measured(int(blocks), args.hidden, args.channels, way)))
        return
    cases = []
    for blocks in (int(text) for text in args.blocks.split(",")):
        for way in ("held", "mapped"):
            shape = ["--hidden", str(args.hidden), "--channels", str(args.channels)]
            command = [sys.executable, __file__, "--one", str(blocks), way, *shape]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            cases.append(json.loads(made.stdout.splitlines()[-1]))
            print(cases[-1], flush=True)
            result = {
                "command": "python " + " ".join(["benchmarks/calibration.py", *sys.argv[1:]]),
                "torch": torch.__version__,
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                "cases": cases,
            }
            args.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(blocks: int, hidden: int, channels: int, way: str) -> dict[str, Any]:
    """Calibrate once; return bytes of the model, and above it at the peak and afterwards."""
    torch.manual_seed(0)
    heads = hidden // 128
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    labels = ids.clone()
    labels[:, : LENGTH // 2] = -100
    batches = [Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)]
    before = _anonymous_bytes()
    peak = _Peak()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, peak:
        if way == "mapped":
            kept = cached_calibration(Path(folder), model, shape_of(model), batches, stand_ins=True)
        else:
            kept = calibrate(model, shape_of(model), batches)
    seconds = time.perf_counter() - begun
    one = sum(t.nbytes for t in (kept.mlp[-1].factor, kept.attention[-1].factor))
    return {
        "blocks": blocks,
        "way": way,
        "model_bytes": sum(p.nbytes for p in model.parameters()),
        "kept_bytes_a_block": one + kept.blocks[-1].replacement.nbytes,
        "peak_above_model_bytes": peak.bytes - before,
        "left_above_model_bytes": _anonymous_bytes() - before,
        "calibrate_s": seconds,
    }


class _Peak:
    """The most anonymous memory that was seen, looked at every 20 ms."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, _anonymous_bytes())


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon in /proc/self/status: this benchmark needs Linux")


if __name__ == "__main__":
    main()
