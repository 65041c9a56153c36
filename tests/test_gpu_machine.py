"""What the GPU pack finds missing on a machine, before any run is begun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu_pack import PACK, imported

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "experiments" / "smoke.toml"
VARIABLES = (
    "AIRTUNE_CACHE", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "PYTHONPATH",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK",
)  # fmt: skip
"""What the script sets for the processes that it starts."""


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back at the end
        monkeypatch.delenv(name)
    yield from imported(monkeypatch)


@pytest.fixture
def main(pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script in this process, whose packages need not be looked for."""
    monkeypatch.setattr(pack.machine, "wheels", list)
    return lambda *arguments: pack.run.main(arguments)


def run_script(
    python: str, *arguments: str, pack: Path = PACK, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [python, str(pack / "run.py"), *arguments]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False)


class Bare:
    """An interpreter that has, besides its own library, some packages of this one; a checkout.

    airtune is not installed there, also where its metadata lie beside this one's sources.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        venv.create(folder / "python", symlinks=True)
        self.site = folder / "site"
        self.site.mkdir()
        self.pack = folder / "checkout" / "experiments" / "gpu"
        shutil.copytree(PACK.parent, self.pack.parent, ignore=shutil.ignore_patterns("rows"))
        shutil.copytree(
            ROOT / "src" / "airtune",
            self.pack.parents[1] / "src" / "airtune",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        # PyTorch for CUDA has its libraries in packages of their own.
        beside = [d for d in metadata.distributions() if d.name.startswith(("nvidia", "triton"))]
        for package in (*map(metadata.distribution, names), *beside):
            for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                link = self.site / top
                if not link.exists():
                    link.symlink_to(Path(str(package.locate_file(top))).absolute())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        python = self.site.parent / "python" / "bin" / "python"
        return run_script(str(python), *arguments, pack=self.pack, PYTHONPATH=str(self.site))


def test_the_packages_that_are_asked_for_are_enough(pack: SimpleNamespace, tmp_path: Path) -> None:
    bare = Bare(tmp_path, [*pack.machine.PACKAGES, *pack.machine.BENEATH])
    done = bare.run("--cpu", "--check", "--studies", str(SMOKE), "--work", str(tmp_path / "work"))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_written_command_fetches_them_all(pack: SimpleNamespace) -> None:
    told = (PACK / "README.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in told.splitlines() if "-m pip download" in line)
    needed = {*pack.machine.PACKAGES, *pack.machine.BENEATH} - {"torch"}
    assert set(line.split()[-len(needed) :]) == needed


@pytest.mark.slow
def test_runs_end_with_these_packages_alone(pack: SimpleNamespace, tmp_path: Path) -> None:
    bare = Bare(tmp_path, [*pack.machine.PACKAGES, *pack.machine.BENEATH])
    done = bare.run("--cpu", "--studies", str(SMOKE), "--jobs", "1",
                    "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"))  # fmt: skip
    assert "2 of 2 runs have ended" in done.stdout, done.stderr
    info = json.loads(next((tmp_path / "work").glob("studies/*/runs/*/run.json")).read_text())
    assert info["versions"]["airtune"] is None


def test_all_packages_that_are_missing_are_said_at_once(
    pack: SimpleNamespace, tmp_path: Path
) -> None:
    absent = {"scipy", "pydantic_core", "annotated-types", "tokenizers", "PyYAML", "mpmath"}
    bare = Bare(tmp_path, {*pack.machine.PACKAGES, *pack.machine.BENEATH} - absent)
    sent, work = tmp_path / "sent", tmp_path / "work"
    sent.mkdir()
    (sent / "m.part1").write_bytes(b"half")
    done = bare.run("--cpu", "--check", "--studies", str(SMOKE), "--models", str(sent),
                    "--work", str(work))  # fmt: skip
    assert (work / "models" / "m.part1").read_bytes() == b"half"  # need not be carried again
    *lines, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert all(line.startswith("missing: the Python package ") for line in lines), done.stderr
    assert {line.split()[4].rstrip(",") for line in lines} == absent
    assert "missing: the Python package pydantic_core, which pydantic needs" in done.stderr
    version = f"--python-version {sys.version_info[0]}.{sys.version_info[1]} "
    assert " -m pip download --no-deps " in last
    assert version in last
    assert absent == set(last.split()[-len(absent) :])


def test_what_is_missing_of_a_gpu_is_said(pack: SimpleNamespace) -> None:
    known = {"torch": "2.13.0", "cuda_build": "13.0", "available": True, "name": "G",
             "free_bytes": 8e10, "total_bytes": 8.5e10, "bfloat16": True}  # fmt: skip
    found, lines = pack.machine.gpu(known)
    assert (found.free_bytes, lines) == (8e10, [])
    for change, said in (
        ({"error": "No module named 'torch'"}, "No module named 'torch'"),
        ({"cuda_build": None}, "built without CUDA"),
        ({"available": False}, "driver"),
        ({"bfloat16": False}, "model.dtype=float32"),
    ):
        none, (line,) = pack.machine.gpu({**known, **change})
        assert none is None
        assert said in line


def test_what_is_missing_of_packages_and_disk_is_said(
    pack: SimpleNamespace, tmp_path: Path
) -> None:
    assert pack.machine.packages(pack.machine.PACKAGES.items()) == []
    (absent, old) = pack.machine.packages([("no-such-package", "1.0"), ("numpy", "99.0")])
    assert "no-such-package (at least 1.0)" in absent
    assert "too old (at least 99.0)" in old
    assert pack.machine.packages([("numpy", "2.0")]) == []
    assert pack.machine.disk(tmp_path, 1.0) == []
    (full,) = pack.machine.disk(tmp_path, 1e18)
    assert "GB free" in full


def test_the_script_says_all_that_is_missing_at_once(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--studies", "gsm8k,gemma", "--work", str(tmp_path / "work")) == 2
    said, errors = capsys.readouterr()
    assert said == ""
    lines = errors.splitlines()
    assert all(line.startswith("missing: ") for line in lines)
    assert "CUDA" in errors
    for name in ("gsm8k: data: no folder", "SmolLM2-135M-Instruct.Q4_1.gguf",
                 "gemma-3-270m-q4_k_m.gguf"):  # fmt: skip
        assert sum(name in line for line in lines) == 1


def test_data_and_models_that_cannot_be_used_are_said_before_any_run(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, large = tmp_path / "work", tmp_path / "large"
    (work / "data" / "clinc150").mkdir(parents=True)
    large.mkdir()
    (large / "model.safetensors").write_bytes(b"")
    asked = ("--studies", "large", "--large-model", str(large), "--work", str(work))
    assert main("--cpu", *asked) == 2
    folder, data = capsys.readouterr().err.splitlines()
    assert folder == f"missing: large: the model's folder {large}: no config.json there"
    assert data.startswith("missing: large: data: task.source = ")
    assert "no train.jsonl or train.csv there" in data


@pytest.mark.parametrize(("option", "given"), [("--methods", "nobody"), ("--seeds", "99")])
def test_a_method_that_the_study_does_not_have_is_refused(
    option: str,
    given: str,
    main: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--studies", str(SMOKE), option, given, "--work", str(tmp_path / "work"))
    assert main("--cpu", "--check", *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{option}: the study has no ")


def test_who_looks_for_a_gpu_is_forked_as_the_runs_are(
    pack: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pack.machine.look({}, tmp_path, use_gpu=True)
    assert {"torch", "cuda_build", "available"} <= found.keys()
    assert (found["data"], found["lacking"]) == ({}, [])
    what = "a process that looks for GPU and data: "
    monkeypatch.setattr(pack.machine, "looked", os._exit)  # which takes no task
    assert pack.machine.look({}, tmp_path, use_gpu=True)["lacking"] == [
        f"{what}it failed as said above"
    ]
    monkeypatch.setattr("airtune.study.pools.ProcessPool.ended", lambda self, timeout_s: {})
    monkeypatch.setattr(pack.machine, "LOOK_S", 0.0)
    (line,) = pack.machine.look({}, tmp_path, use_gpu=True)["lacking"]
    assert line == f"{what}it did not answer within 0 s"


def test_another_file_than_the_models_is_refused_and_removed(
    pack: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "work" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another")
    assert pack.run.main(["--split", str(file), "--out", str(tmp_path / "parts")]) == 2
    assert "its SHA-256 is" in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()
    (line,) = pack.machine.model("smollm2-135m-instruct", tmp_path / "work")
    assert "it was removed there: carry it again" in line
    assert not file.exists()
