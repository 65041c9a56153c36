"""Which base model an adapter belongs to, said so that plain PEFT finds it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from airtune.models import assets
from airtune.models.builtin import PACKED, TINY, export, packed_folder
from airtune.models.loading import load_model
from airtune.scenario import ModelSection


@dataclass(frozen=True)
class BaseReference:
    """What an adapter's files say of its base model."""

    name: str
    """`base_model_name_or_path`: a hub id where there is one, else an absolute folder."""
    note: str
    """What to know before loading it, in a sentence or two."""


def base_reference(section: ModelSection, *, seed: int) -> BaseReference:
    """Return the base model's name on the hub, or the folder it is in.

    `tiny` is nowhere but in memory: it is written once into the cache folder, 60 kB.

    Args:
        section: how the scenario names the model.
        seed: of the scenario, for the weights of `tiny`.

    Raises:
        OSError: the cache folder cannot be written.
    """
    here = "The base model is a folder of this machine; on another one, give that machine's copy."
    quantized = ""
    if section.quantize is not None:
        quantized = (
            f" The adapter was trained on weights quantized to {section.quantize}, which the base "
            "model is not."
        )
    if section.id == TINY:
        folder = _tiny_folder(section, seed)
        return BaseReference(str(folder.resolve()), f"{here}{quantized}")
    if section.id in PACKED:
        hub_id, folder = PACKED[section.id].hub_id, packed_folder(section.id)
        return BaseReference(
            hub_id,
            "The adapter was trained on 4-bit weights of this model, unpacked. They are in "
            f"{folder.resolve()} on this machine: loaded from there, without a network, base and "
            "adapter have the loss on record. The hub's weights are those they were rounded from."
            f"{quantized}",
        )
    folder = Path(section.id)
    is_folder = folder.is_dir()
    name = str(folder.resolve()) if is_folder else section.id
    notes = [here] if is_folder else []
    if section.gguf_file is not None:
        notes.append(
            f"Its weights are in a GGUF file: give gguf_file={section.gguf_file!r} to "
            "AutoModelForCausalLM.from_pretrained."
        )
    return BaseReference(name, (" ".join(notes) + quantized).strip())


def _tiny_folder(section: ModelSection, seed: int) -> Path:
    loaded = load_model(section.model_copy(update={"quantize": None}), seed=seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    folder = assets.cache_dir() / "models" / f"{TINY}-{loaded.fingerprint[:16]}"
    if (folder / "complete.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".export-", dir=folder.parent))
    try:
        export(model, tokenizer, work / "folder", source=TINY)
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(work / "folder", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def adapter_readme(base: BaseReference, gguf_file: str | None = None) -> str:
    """Return the text that goes beside an adapter: its base model, and how to load the two."""
    if gguf_file is None:
        load = (
            "from peft import AutoPeftModelForCausalLM\n\n"
            "model = AutoPeftModelForCausalLM.from_pretrained(ADAPTER)  # this folder"
        )
    else:
        load = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({base.name!r}, gguf_file={gguf_file!r})\n"
            "model = PeftModel.from_pretrained(base, ADAPTER)  # this folder"
        )
    note = f"\n{base.note}\n" if base.note else ""
    # The hub's metadata, which PEFT completes; without any it complains on the terminal.
    head = f"---\nbase_model: {json.dumps(base.name)}\nlibrary_name: peft\n---\n"
    return f"{head}# LoRA adapter\n\nBase model: `{base.name}`\n{note}\n```python\n{load}\n```\n"
