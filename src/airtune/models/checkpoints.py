"""Read a model folder or a hub repository: checked first, and nothing in it is ever run.

Transformers fills what a checkpoint does not hold with random values, and asks on the terminal
before it runs a checkpoint's own code. Here the one is an error and the other never happens.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import socket
import struct
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from airtune.errors import InputError
from airtune.models.families import FAMILIES, check_dense, family_of
from airtune.models.folders import check_files, check_gguf, read_config
from airtune.models.shapes import SHAPES
from airtune.scenario import ModelSection

_NO_OWN_CODE = {"trust_remote_code": False}
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What Transformers raises of a file that is not what it should be, depending on the file."""


def read_checkpoint(
    source: str, section: ModelSection, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a folder or a hub repository.

    Args:
        source: the folder or the hub id.
        section: how the scenario names it, and its GGUF file if it is one.
        dtype: of the weights in memory.

    Raises:
        InputError: there is no such model, a file of it is incomplete, its weights are not those
            of its configuration, or its architecture cannot be cut.
    """
    options: dict[str, Any] = {"gguf_file": section.gguf_file} if section.gguf_file else {}
    folder = Path(source)
    if folder.is_absolute() and not folder.is_dir():
        raise InputError(f"model.id = '{source}': no such folder")
    if not folder.is_dir() and not hub_reachable():
        options["local_files_only"] = True  # what an earlier download left, without retries
    reading = "configuration"
    try:
        with quiet():
            # The configuration first: an unknown architecture is refused before any download.
            config = _checked_configuration(source, options)
            # Parsing a GGUF file's 262 thousand tokens takes many seconds: as seldom as possible.
            known = {"config": config} if section.gguf_file else {}
            if folder.is_dir() and not section.gguf_file:
                check_files(folder)
            reading = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(source, **options, **known, **_NO_OWN_CODE)
            reading = "weights"
            model, report = _model_of(source, dtype, options | known)
        _check_report(report)
    except InputError as error:
        raise InputError(f"model.id = '{section.id}': {error}") from None
    except _UNREADABLE as error:
        reason = f"its {reading}: {_reason(error)}"
        if section.gguf_file:
            reason = f"{section.gguf_file}, its {reading}: truncated or damaged? {_reason(error)}"
        if options.get("local_files_only"):
            reason = "the hub cannot be reached, and no earlier download is in its cache"
        built_in = ", ".join(f"'{name}'" for name in SHAPES)
        raise InputError(
            f"model.id = '{section.id}': cannot be loaded: {reason}; give {built_in}, "
            "a folder with config.json, weights and tokenizer, or a hub id (with a network)"
        ) from None
    return model, tokenizer


def _reason(error: Exception) -> str:
    """Return what an error of Transformers comes to, in a line."""
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        return "a .bin file that is truncated, or holds more than tensors"
    if "custom code" in said:
        return "code of its own, which is never run here"
    return said.partition(". ")[0].rstrip(".") or type(error).__name__


def _checked_configuration(source: str, options: Mapping[str, Any]) -> PretrainedConfig:
    """Return a configuration; raises `InputError` if it cannot be read or used."""
    folder, gguf = Path(source), options.get("gguf_file")
    if gguf is None:
        is_folder = folder.is_dir()
        raw = (
            read_config(folder)
            if is_folder
            else PretrainedConfig.get_config_dict(source, **options)[0]
        )
        _check_config(raw)
    elif folder.is_dir():
        check_gguf(folder, gguf)
    # Where its class is known by now, also with the class's own checks.
    config: PretrainedConfig = AutoConfig.from_pretrained(source, **options, **_NO_OWN_CODE)
    _check_config(config.to_dict())
    return config


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse what cannot be cut or would have to be run; raises `InputError`."""
    check_dense(config)
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES and config.get("auto_map"):
        raise InputError(
            f"model architecture '{model_type}' brings code of its own (auto_map in config.json), "
            f"which is never run here; known: {', '.join(FAMILIES)}"
        )
    family_of(model_type)
    quantized = config.get("quantization_config")
    if quantized:
        named = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise InputError(
            f"its weights are quantized already (config.json: quant_method = {named!r}), and "
            "such weights cannot be cut: give the original checkpoint"
        )


def _model_of(
    source: str, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the model and what Transformers reports of its weights."""
    gguf = options.get("gguf_file")
    unpack = {"quantization_config": GgufConfig(gguf, dequantize=True)} if gguf else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report
        **options,
        **unpack,
        **_NO_OWN_CODE,
    )
    model, report = loaded
    if gguf:
        # Unpacked weights are ordinary ones: without these marks the model can be saved and cut.
        for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, mark):
                delattr(model, mark)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model, report


def _check_report(report: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the configuration; raises `InputError`."""
    parts = []
    for key, what in (("missing_keys", "missing"), ("unexpected_keys", "unexpected")):
        if report[key]:
            parts.append(f"{len(report[key])} {what} ({_few(sorted(report[key]))})")
    if report["mismatched_keys"]:
        shapes = [
            f"{name} is {_sizes(found)}, not {_sizes(wanted)}"
            for name, found, wanted in sorted(report["mismatched_keys"])
        ]
        parts.append(f"{len(shapes)} of another shape ({_few(shapes)})")
    if not parts and report["error_msgs"]:
        parts.append(_few([" ".join(str(message).split()) for message in report["error_msgs"]]))
    if parts:
        raise InputError(
            f"its weights are not those of its config.json: of its tensors, {'; '.join(parts)}; "
            "give the configuration that the weights were saved with (nothing is filled in)"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[:2] if more else names) + more


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def hub_reachable() -> bool:
    """Whether the hub answers; asked once, because the hub's client retries for 20 s a file."""
    endpoint = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(endpoint.scheme):
        return True  # a proxy resolves names that this machine cannot
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers' bars, log lines and warnings off the terminal."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
