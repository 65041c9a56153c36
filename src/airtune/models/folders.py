"""Whether a model folder's files are whole, seen in milliseconds and before any is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from airtune.errors import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the placeholder begins that Git leaves where Git LFS did not fetch the file itself."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
               "tokenizer_config.json")  # fmt: skip
_WEIGHTS = ("*.safetensors", "*.bin")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's configuration.

    Raises:
        InputError: config.json is missing, a placeholder, not JSON or names no architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it has '{ggufs[0]}': give model.gguf_file" if ggufs else ""
        raise InputError(f"there is no config.json in the folder{hint}")
    _check_no_pointer(path)
    config = _json_object(path)
    if "model_type" not in config:
        raise InputError("config.json has no model_type, which names the architecture")
    return config


def check_files(folder: Path) -> None:
    """Refuse a model folder with a file that is missing, truncated or a placeholder.

    Raises:
        InputError: names the file.
    """
    weights = [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.model")) + weights:
        _check_no_pointer(path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            "there is no tokenizer in the folder (tokenizer.json): save it there with "
            "tokenizer.save_pretrained"
        )
    for index in sorted(folder.glob("*.index.json")):
        parts = _json_object(index).get("weight_map")
        for name in sorted(set(parts.values()) if isinstance(parts, dict) else ()):
            if not (folder / str(name)).is_file():
                raise InputError(f"{index.name} names '{name}', which is not in the folder")
    for path in weights:
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def check_gguf(folder: Path, name: str) -> None:
    """Refuse a GGUF file that is not there or not one; raises `InputError`."""
    path = folder / name
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "none"
        raise InputError(f"model.gguf_file = '{name}': not in the folder, which has: {others}")
    _check_no_pointer(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"model.gguf_file = '{name}': not a GGUF file")


def _check_no_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"{path.name} is a placeholder of Git LFS, not the file itself: run 'git lfs pull' "
                "in the folder"
            )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is not a JSON object")
    return value


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with where its header says that the last tensor ends.

    The format: eight bytes with the header's length, the header (JSON, each tensor with its
    data_offsets), the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise InputError(f"{path.name} is truncated or not a safetensors file: {size} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path.name} does not begin as a safetensors file does") from None
    end = 8 + length + max(ends, default=0)
    if end != size:
        raise InputError(f"{path.name} is truncated: {size} bytes, and its tensors end at {end}")
