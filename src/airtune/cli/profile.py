"""`airtune profile`: measure this machine as a device for scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write the device profile.")
    ] = Path("device.json"),
    model: Annotated[
        str, typer.Option("--model", help="Model to measure with: built in, a folder, a hub id.")
    ] = "smollm2-135m-instruct",
    name: Annotated[str, typer.Option("--name", help="The device's name in reports.")] = "measured",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    rates: Annotated[
        str, typer.Option("--rates", help="Pruning rates to measure.")
    ] = "0,0.2,0.4,0.6,0.8",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Examples in a batch.")] = 4,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens an example.")] = 160,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed steps a rate.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure seconds of a training step against the pruning rate, and write a device profile.

    A scenario uses it by its path: profile = "device.json".

    **Examples**

      airtune profile

      airtune profile --model tiny --rates 0,0.5 --out laptop.json --name laptop
    """
    import json

    from pydantic import ValidationError

    from airtune.errors import InputError
    from airtune.scenario import ModelSection

    try:
        wanted = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise InputError(f"--rates '{rates}': write numbers in [0, 1), e.g. 0,0.4,0.8") from None
    try:
        section = ModelSection.model_validate({"id": model, "dtype": dtype})
    except ValidationError:
        raise InputError(f"--dtype '{dtype}': must be float32 or bfloat16") from None
    if not out.parent.is_dir():
        raise InputError(f"--out '{out}': the folder {out.parent} does not exist")

    from airtune.models.loading import load_model
    from airtune.training.profiling import device_profile, measure

    loaded = load_model(section, seed=0)
    import torch

    if torch.cuda.is_available():
        loaded.model.to("cuda")
    steps = measure(loaded, wanted, rows=rows, length=length, lora_rank=8, repeats=repeats)
    result = device_profile(name, f"{model} in {dtype}", steps)
    try:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out '{out}': {error.strerror}") from None
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo("pruning  seconds a step  time ratio  FLOP ratio")
    for step in steps:
        typer.echo(
            f"{step.pruning:7.3f}  {step.seconds:14.4f}  {step.seconds / steps[0].seconds:10.3f}"
            f"  {step.flops / steps[0].flops:10.3f}"
        )
    typer.echo(f"{result['effective_flops'] / 1e9:.4g} GFLOP/s; written to {out}")
