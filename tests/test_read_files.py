"""Weights and texts that changed on disk are noticed: by a resumed run, and by shared work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import airtune as at
from airtune.data import Encoded, text_fingerprint
from airtune.engines.local import LocalEngine
from airtune.engines.sharing import SharingEngine
from airtune.errors import InputError
from airtune.scenario import Scenario

pytestmark = pytest.mark.usefixtures("one_thread")


def write_texts(folder: Path, answer: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 80), ("test", 8)):
        lines = (
            json.dumps({"prompt": f"{name} {k}: ", "answer": f"{answer} {k}"}) for k in range(count)
        )
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def scenario(folder: Path, rounds: int) -> Scenario:
    return at.load_scenario("tiny", [
        f"rounds={rounds}", "training.local_steps=1", "task.name=prompt-answer",
        f"task.source='{folder}'", "task.train_examples=64", "task.eval_examples=8",
    ])  # fmt: skip


def test_a_run_is_not_resumed_with_other_texts(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", "one")
    out = tmp_path / "run"
    at.run(scenario(tmp_path / "texts", 1), out=out)
    write_texts(tmp_path / "texts", "two")
    with pytest.raises(InputError, match="begun with other training or test examples"):
        at.run(scenario(tmp_path / "texts", 2), out=out, resume=True)
    write_texts(tmp_path / "texts", "one")
    assert len(at.run(scenario(tmp_path / "texts", 2), out=out, resume=True).rounds) == 2


def test_a_run_is_not_resumed_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts", "one")
    out = tmp_path / "run"
    at.run(scenario(tmp_path / "texts", 1), out=out)
    monkeypatch.setattr("airtune.models.loading.fingerprint_of", lambda model: "others")
    with pytest.raises(InputError, match="begun with other model weights"):
        at.run(scenario(tmp_path / "texts", 2), out=out, resume=True)


def losses(folder: Path, shared: Path | None, out: Path) -> list[float | None]:
    asked = scenario(folder, 1)
    engine = LocalEngine(asked)
    used = engine if shared is None else SharingEngine(engine, asked, shared, 1e9)
    return [one.eval_loss for one in at.run(asked, out=out, engine=used).rounds]


def test_work_of_other_texts_is_not_taken(tmp_path: Path) -> None:
    texts, shared = tmp_path / "texts", tmp_path / "shared"
    write_texts(texts, "one")
    first = losses(texts, shared, tmp_path / "a")
    write_texts(texts, "two")
    computed = losses(texts, None, tmp_path / "b")
    assert losses(texts, shared, tmp_path / "c") == computed != first


def test_the_name_of_texts_depends_on_each_of_them_and_their_order() -> None:
    a, b = Encoded((1, 2), (-100, 2), 0), Encoded((1, 2), (-100, 2), 1)
    names = {text_fingerprint(parts) for parts in (
        ([a], [b]), ([b], [a]), ([a, b], []), ([a], [a]), ([b, a], []),
    )}  # fmt: skip
    assert len(names) == 5
    assert text_fingerprint(([a], [b])) == text_fingerprint(((a,), (b,)))


def test_a_run_is_not_thrown_away_for_one_that_is_not_possible(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", "one")
    out = tmp_path / "run"
    at.run(scenario(tmp_path / "texts", 1), out=out)
    before = (out / "run.json").read_bytes()
    with pytest.raises(InputError, match="no such file or folder"):
        at.run(scenario(tmp_path / "nowhere", 1), out=out, replace=True)
    assert (out / "run.json").read_bytes() == before
    assert len(at.read_record(out).rounds) == 1
    at.run(scenario(tmp_path / "texts", 2), out=out, replace=True)
    assert len(at.read_record(out).rounds) == 2
