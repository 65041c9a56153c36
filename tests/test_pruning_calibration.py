"""Calibration: streamed moments are the model's own, hashes guard them, bad input is refused."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airtune.errors import InputError
from airtune.models.loading import fingerprint_of, shape_of
from airtune.pruning import Statistics, cached_calibration, calibrate, load_statistics, text_hash
from airtune.pruning.calibration import block_moments
from airtune.pruning.layers import blocks_of, output_projection
from airtune.pruning.statistics import Block
from airtune.pruning.store import FORMAT, save_block, save_header
from small_models import NAMES, TextBatch, small_model, text_batch


def hooked_moments(model, shape, batches, block: int, unit: str):
    """The same moments from the whole model's forward pass, padding left out."""
    seen = []
    layer = blocks_of(model, shape)[block].get_submodule(output_projection(shape, unit).name)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches:
        model(input_ids=batch.input_ids)
        mask = batch.attention_mask.bool().reshape(-1)
        seen[-1] = seen[-1].reshape(-1, seen[-1].shape[-1])[mask]
    handle.remove()
    hidden = torch.cat(seen).double()
    return hidden.T @ hidden / len(hidden), hidden.mean(0)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_moments_are_those_of_the_whole_model(name: str) -> None:
    model = small_model(name)
    shape = shape_of(model)
    batches = [text_batch(seed=1), text_batch(rows=3, length=9, seed=2)]
    streamed = {block: moments for block, moments, _ in block_moments(model, shape, batches)}
    assert list(streamed) == list(range(shape.blocks))
    with torch.no_grad():
        for block in streamed:
            for unit in ("mlp", "group"):
                second, mean = hooked_moments(model, shape, batches, block, unit)
                torch.testing.assert_close(
                    streamed[block][unit][0].double(), second, atol=1e-4, rtol=1e-4
                )
                torch.testing.assert_close(
                    streamed[block][unit][1].double(), mean, atol=1e-4, rtol=1e-4
                )


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma3"])
def test_calibration_leaves_the_model_as_it_was(name: str) -> None:
    model = small_model(name)
    shape, before = shape_of(model), fingerprint_of(model)
    blocks = list(blocks_of(model, shape))
    ids = text_batch().input_ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    calibrate(model, shape, [text_batch()])
    assert fingerprint_of(model) == before
    assert list(blocks_of(model, shape)) == blocks
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        again = model(input_ids=ids).logits
    assert torch.equal(logits, again)
    assert not again.requires_grad


def test_statistics_are_deterministic() -> None:
    model = small_model("llama")
    one, other = (calibrate(model, shape_of(model), [text_batch()]) for _ in range(2))
    for a, b in zip(one.mlp + one.attention, other.mlp + other.attention, strict=True):
        assert torch.equal(a.order, b.order)
        assert torch.equal(a.factor, b.factor)


def test_expected_harm_is_near_the_loss_really_lost() -> None:
    """Small cuts, where the quadratic estimate should hold, to within a factor of three."""
    from airtune.models.loading import label_logits
    from airtune.pruning import choose, cut
    from airtune.pruning.choice import removal_order

    model = small_model("llama", seed=5)
    shape = shape_of(model)
    # Labels drawn from the model itself: there the Fisher information is the curvature.
    batch = text_batch(rows=160, length=24, padded=False)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[:, :-1]
    drawn = torch.distributions.Categorical(logits=logits)
    torch.manual_seed(0)
    labels = torch.cat([torch.full((160, 1), -100), drawn.sample()], dim=1)
    batch = TextBatch(batch.input_ids, batch.attention_mask, labels)

    def loss(model) -> float:
        with torch.no_grad():
            logits = label_logits(model, batch)
        return float(torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1)))

    statistics = calibrate(model, shape, [batch])
    structure = choose(statistics, shape, 0.1)
    real = loss(cut(model, shape, structure, statistics)) - loss(model)
    steps = removal_order(statistics, shape, "mixed")
    kept = sum(structure.sizes.mlp_channels) + sum(structure.sizes.kv_groups)
    whole = shape.blocks * (shape.mlp_channels + shape.kv_heads)
    expected = sum(step.harm for step in steps[: whole - kept])
    assert 1 / 3 < real / expected < 3


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small_model("llama")
    shape = shape_of(model)
    path = tmp_path

    def held_too(index: int, block: Block) -> Block:
        save_block(block, index, path)
        return block

    statistics = calibrate(model, shape, [text_batch()], kept=held_too)
    save_header(statistics, path)
    loaded = load_statistics(path, fingerprint=fingerprint_of(model), text=statistics.text)
    assert loaded.tokens == statistics.tokens
    for unit in ("mlp", "group"):
        for block in range(shape.blocks):
            one, other = (s.sublayer(block, unit) for s in (statistics, loaded))
            for key in ("order", "factor", "scale", "mean", "harm"):
                assert torch.equal(getattr(one, key), getattr(other, key))
    for one, other in zip(statistics.blocks, loaded.blocks, strict=True):
        assert (one.harm, one.replaced_harm) == (other.harm, other.replaced_harm)
        assert torch.equal(one.replacement, other.replacement)


def test_what_was_calibrated_once_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("llama")

    def read(folder: Path, seed: int = 0, *, stand_ins: bool = False) -> Statistics:
        batches = [text_batch(seed=seed)]
        return cached_calibration(folder, model, shape_of(model), batches, stand_ins=stand_ins)

    first = read(tmp_path)
    other_text = read(tmp_path, seed=1)
    assert other_text.text != first.text
    read(tmp_path, stand_ins=True)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3

    # What was cut off or lost is made anew; then nothing is calibrated any more.
    plain = next(f for f in files if first.text[:16] in f.name and "plain" in f.name)
    block = plain / "block-001.safetensors"
    cut_off = block.read_bytes()[:-1]
    block.unlink()  # not in place: `first` has it mapped
    block.write_bytes(cut_off)
    read(tmp_path)
    block.unlink()
    read(tmp_path)
    monkeypatch.setattr("airtune.pruning.cache.calibrate", None)
    again = read(tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    assert again.text == first.text
    for one, other in zip(first.mlp, again.mlp, strict=True):
        assert torch.equal(one.factor, other.factor)


def test_a_cached_block_is_mapped_from_its_file_and_not_held(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("no /proc/self/maps on this system")
    model = small_model("llama")
    shape, batches = shape_of(model), [text_batch()]

    def file_of(tensor: torch.Tensor) -> str | None:
        for line in maps.read_text().splitlines():
            span, *_, name = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in span.split("-"))
            if begin <= tensor.data_ptr() < end:
                return name if name.endswith(".safetensors") else None
        return None

    made = cached_calibration(tmp_path, model, shape, batches, stand_ins=True)
    read = cached_calibration(tmp_path, model, shape, batches, stand_ins=True)
    for statistics in (made, read):
        for index, (sublayer, whole) in enumerate(
            zip(statistics.mlp, statistics.blocks, strict=True)
        ):
            for tensor in (sublayer.factor, sublayer.harm, whole.replacement):
                if tensor.numel():
                    assert f"block-{index:03}" in str(file_of(tensor))
    plain = calibrate(model, shape, batches)
    assert file_of(plain.mlp[0].factor) is None
    # Nothing but the three blocks and their header, and nothing half-written beside it.
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"block-{index:03}.safetensors" for index in range(shape.blocks)),
        "statistics.json",
    ]


def test_of_two_that_write_the_same_statistics_both_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("llama")
    shape, batches = shape_of(model), [text_batch()]
    first = None

    def overtaken(*args, **kwargs):
        nonlocal first
        monkeypatch.setattr("airtune.pruning.cache.calibrate", calibrate)
        first = cached_calibration(tmp_path, model, shape, batches, stand_ins=True)
        return calibrate(*args, **kwargs)

    monkeypatch.setattr("airtune.pruning.cache.calibrate", overtaken)
    second = cached_calibration(tmp_path, model, shape, batches, stand_ins=True)
    assert first is not None
    assert torch.equal(first.mlp[0].factor, second.mlp[0].factor)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_calibration_left_is_swept_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".old.partial", tmp_path / ".new.partial"
    for partial in (old, new):
        partial.mkdir()
        (partial / "block-000.safetensors").write_bytes(b"0")
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    model = small_model("llama")
    cached_calibration(tmp_path, model, shape_of(model), [text_batch()], stand_ins=False)
    assert not old.exists()
    assert new.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = small_model("llama")
    folder = tmp_path / "file"
    folder.write_text("")
    with pytest.raises(InputError, match=r"cannot write calibration statistics into .*file"):
        cached_calibration(folder, model, shape_of(model), [text_batch()], stand_ins=False)


def test_statistics_of_another_model_or_text_are_refused(tmp_path: Path) -> None:
    model = small_model("llama")
    batch = text_batch()
    cached_calibration(tmp_path, model, shape_of(model), [batch], stand_ins=True)
    (path,) = tmp_path.iterdir()
    right = {"fingerprint": fingerprint_of(model), "text": text_hash([batch])}
    load_statistics(path, **right)
    other = fingerprint_of(small_model("llama", seed=1))
    with pytest.raises(InputError, match=r"statistics of another model \(fingerprint"):
        load_statistics(path, **{**right, "fingerprint": other})
    with pytest.raises(InputError, match=r"statistics of other text \(text"):
        load_statistics(path, **{**right, "text": text_hash([text_batch(seed=1)])})


def test_broken_files_are_refused(tmp_path: Path) -> None:
    keys = {"fingerprint": "a", "text": "b"}
    header = tmp_path / "statistics.json"
    with pytest.raises(InputError, match="cannot read"):
        load_statistics(tmp_path, **keys)
    for broken in ("", "{", "[]", '{"format": "other"}'):
        header.write_text(broken)
        with pytest.raises(InputError, match=r"cannot read|not calibration statistics"):
            load_statistics(tmp_path, **keys)
    whole = {"format": FORMAT, **keys, "tokens": 1, "loss": 1.0, "blocks": 1}
    header.write_text(json.dumps(whole))
    for block in (None, b"", b"\0" * 40):
        if block is not None:
            (tmp_path / "block-000.safetensors").write_bytes(block)
        with pytest.raises(InputError, match="cannot read"):
            load_statistics(tmp_path, **keys)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "0 examples, at least 8"),
        ([text_batch(rows=3)], "3 examples, at least 8"),
        (
            [replace(text_batch(rows=8), labels=torch.full((8, 12), -100))],
            "no answer tokens",
        ),
    ],
    ids=["empty", "shorter than a batch", "without labels"],
)
def test_unusable_calibration_text_is_refused(batches, message: str) -> None:
    model = small_model("llama")
    with pytest.raises(InputError, match=message):
        calibrate(model, shape_of(model), batches, min_rows=8)


def test_a_model_that_computes_nan_is_refused() -> None:
    model = small_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        calibrate(model, shape_of(model), [text_batch()])


def test_constant_text_gives_finite_cuts() -> None:
    """One token over and over: moments of rank one, every covariance (nearly) zero."""
    from airtune.pruning import choose, cut

    model = small_model("llama")
    shape = shape_of(model)
    ids = torch.full((8, 12), 7)
    batch = TextBatch(ids, torch.ones_like(ids), ids)
    statistics = calibrate(model, shape, [batch])
    for rate in (0.3, 0.6):
        submodel = cut(model, shape, choose(statistics, shape, rate), statistics)
        with torch.no_grad():
            assert torch.isfinite(submodel(input_ids=ids).logits).all()
