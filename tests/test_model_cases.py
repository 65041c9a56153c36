"""Model folders as people have them: refused in one line that says what is wrong, or used."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from airtune.errors import InputError
from airtune.models.builtin import byte_tokenizer, tiny_model
from airtune.models.loading import fingerprint_of, load_model
from airtune.scenario import ModelSection

CASES = tomllib.loads((Path(__file__).parent / "cases/models/refused.toml").read_text())["case"]


@pytest.fixture(scope="module")
def whole_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A whole folder with tied embeddings, and one with an LM head of its own."""
    folders = {}
    for untied in (False, True):
        folders[untied] = tmp_path_factory.mktemp("whole")
        model = tiny_model(0)
        if untied:
            model.config.tie_word_embeddings = False
            head = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
            model.lm_head.weight = head
            model._tied_weights_keys = None
        model.save_pretrained(folders[untied])
        byte_tokenizer().save_pretrained(folders[untied])
    return folders


def edit_weights(folder: Path, case: dict[str, Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if "saved_as" in case:
        config = transformers.AutoConfig.from_pretrained(folder)
        getattr(transformers, case["saved_as"])(config).save_pretrained(folder)
        return
    if "drop" in case:
        del tensors[case["drop"]]
    if "rename" in case:
        old, new = case["rename"]
        tensors = {
            new + name.removeprefix(old) if name.startswith(old) else name: value
            for name, value in tensors.items()
        }
    save_file(tensors, path, metadata={"format": "pt"})


def made(case: dict[str, Any], whole: Path, folder: Path) -> None:
    """Copy the whole folder and do to it what the case says."""
    shutil.copytree(whole, folder)
    edit_weights(folder, case)
    if "config" in case:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | case["config"]))
    for name in case.get("remove", []):
        (folder / name).unlink()
    for name, text in case.get("write", {}).items():
        (folder / name).write_text(text)
    if "cut_bytes" in case:
        path = folder / case["file"]
        path.write_bytes(path.read_bytes()[: -case["cut_bytes"]])
    if "added_token" in case:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([case["added_token"]])
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_refused(
    case: dict[str, Any],
    whole_folders: dict[bool, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    made(case, whole_folders[case.get("untied", False)], folder)
    capfd.readouterr()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    section = ModelSection(id=str(folder), **case.get("section", {}))
    with pytest.raises(InputError) as caught:
        load_model(section, seed=0, max_tokens=case.get("max_tokens"))
    message = str(caught.value)
    assert case["message"].replace("{folder}", str(folder)) in message
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(folder))
    assert not (folder / "ran").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("untied", [False, True])
def test_whole_folders_are_used(
    untied: bool, whole_folders: dict[bool, Path], tmp_path: Path
) -> None:
    """Also with an LM head that repeats the embedding, leftovers, and code that is not needed."""
    folder = tmp_path / "model"
    made(
        {
            "config": {"auto_map": {"AutoModelForCausalLM": "own.Model"}},
            "write": {"own.py": "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"},
        },
        whole_folders[untied],
        folder,
    )
    tensors = load_file(folder / "model.safetensors")
    if not untied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(ModelSection(id=str(folder)), seed=0, max_tokens=2048)
    again = load_model(ModelSection(id=str(whole_folders[untied])), seed=1)
    assert loaded.fingerprint == again.fingerprint == fingerprint_of(loaded.model)
    assert loaded.shape.tied is not untied
    assert not (folder / "ran").exists()
