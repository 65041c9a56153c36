"""What a command prints: on narrow, old, closed and full outputs; and how Ctrl-C ends it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import airtune as at
import fake_record
from airtune.cli.ending import Interrupted, ended
from airtune.cli.output import Steady, lost_output, steady_streams
from airtune.cli.progress import JsonLines, told_when_interrupted
from airtune.report import comparison_table, summary_table
from airtune.report.tables import Column, Fitted, middle_cut

CODE = "from airtune.cli import main; main()"
CELL = str(Path(__file__).resolve().parents[1] / "examples" / "cell.json")


def shown(table: Fitted, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> at.Record:
    return at.read_record(fake_record.write_run(tmp_path_factory.mktemp("runs") / "exact"))


# Narrow


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_fit_and_name_every_client(record: at.Record, width: int) -> None:
    lines = shown(summary_table(record), width)
    assert max(map(len, lines)) <= width
    for client in record.rounds[0].clients:
        assert any(line.strip().startswith(client.name[:5]) for line in lines)
        assert any(line.strip().split(" ")[0].endswith(client.name[-4:]) for line in lines)
    both = comparison_table({"runs/a-folder-of-long-name/exact": record, "b": record})
    lines = shown(both, width)
    assert max(map(len, lines)) <= width
    said = " ".join(lines)
    assert ("not shown in 40 columns" in said) == (width == 40)
    assert ("mean gap" in said) == (width == 40)


def test_a_round_is_printed_as_in_the_record_also_where_its_loss_is_no_number(
    record: at.Record, capsys: pytest.CaptureFixture[str]
) -> None:
    JsonLines().round_ended(replace(record.rounds[0], eval_loss=float("nan")))
    printed = json.loads(capsys.readouterr().out)
    assert printed["eval_loss"] is None
    assert printed["round"] == 1


def test_what_leaves_first_is_what_ranks_last() -> None:
    table = Fitted(
        [
            Column("client", ["a" * 30, "b"], kind="name"),
            Column("stays", ["1", "2"]),
            Column("first\nto go", ["3", "4"], rank=9),
            Column("second", ["5", "6"], rank=3),
        ]
    )
    wide, middle, narrow = (" ".join(" ".join(shown(table, w)).split()) for w in (60, 32, 26))
    assert "not shown" not in wide
    assert "a" * 30 in wide
    assert "second" in middle.split("not shown in 32 columns: first to go")[0]
    assert "not shown in 26 columns: first to go, second (--json has all)" in narrow
    assert "stays" in narrow.split("not shown")[0]


def test_long_tables_are_cut_in_the_middle_and_say_so() -> None:
    names = [f"client-{k}" for k in range(1, 201)]
    lines = shown(Fitted([Column("client", names, kind="name")], rows="clients"), 80)
    assert len(lines) < 50
    for name in (*names[:20], *names[-20:]):
        assert f" {name} " in " ".join(lines) + " "
    assert "client-21 " not in " ".join(lines)
    assert "160 of 200 clients not shown (--json has all)" in lines[-1]


def test_a_name_is_cut_in_its_middle() -> None:
    assert middle_cut("raspberry-pi-5-12", 9) == "rasp…5-12"
    assert middle_cut("raspberry-pi-5-12", 8, "~") == "ras~5-12"
    assert middle_cut("short", 5) == "short"


def test_markup_in_a_name_is_text() -> None:
    assert any("[red]x" in line for line in shown(Fitted([Column("client", ["[red]x"])]), 40))


def process(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-c", CODE, *words],
        text=True,
        env=environment,
        timeout=300,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_plan_names_its_clients_in_a_narrow_window(columns: str) -> None:
    made = process("plan", CELL, env={"COLUMNS": columns})
    assert made.returncode == 0, made.stderr
    table = made.stdout.split("not shown")[0]
    assert max(map(len, table.splitlines())) <= int(columns)
    for name in ("jets", "laptop", "raspberry"):
        assert name in table


def test_the_version_and_the_completion_of_shells() -> None:
    assert process("--version").stdout == f"airtune {at.__version__}\n"
    assert "--install-completion" in process("--help").stdout


def test_all_folders_are_checked_before_the_first_method_runs(tmp_path: Path) -> None:
    fake_record.started(tmp_path / "none")
    made = process("compare", "tiny", "-o", str(tmp_path), "--methods", "exact,none", "--json")
    assert (made.returncode, made.stdout) == (2, "")
    assert f"'{tmp_path / 'none'}' already holds a run" in made.stderr
    assert not (tmp_path / "exact").exists()


# What cannot be encoded


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_a_console_of_few_characters_gets_plain_ones(encoding: str) -> None:
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    made = process("plan", CELL, env=environment, encoding=encoding)
    assert made.returncode == 0, made.stderr
    assert "N 1.0363 = 25.5327 s" in made.stdout
    assert ("a round x N" in made.stdout) == (encoding != "cp1252")


def test_what_an_encoding_lacks_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with steady_streams():
        print("1.6 → 1.1 – κ·Q é 中 \udcff")
    assert raw.getvalue().decode("ascii").strip() == "1.6 -> 1.1 - kappa*Q e ? ?"


# Closed and full


class Full(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.BytesIO):
    def write(self, data: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("target", "said"), [(Full(), "No space left on device"), (Closed(), None)]
)
def test_a_stream_that_fails_is_no_end(target: io.BytesIO, said: str | None) -> None:
    stream = Steady(target)
    assert stream.write(b"one") == 3
    assert stream.write(b"two") == 3
    assert lost_output([stream]) == said


def test_a_reader_that_goes_away_ends_no_run(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    folder = tmp_path / "run"
    made = process("run", "tiny", "-o", str(folder), "--set", "rounds=2", "--json", stdout=write)
    os.close(write)
    assert (made.returncode, made.stderr) == (0, "")
    assert at.read_record(folder).finished


def test_a_first_run_where_the_locale_is_c(tmp_path: Path) -> None:
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
    }
    folder = tmp_path / "run"
    small = ("--set", "rounds=1", "--set", "task.eval_examples=8")
    made = process("run", "tiny", "-o", str(folder), *small, env=ascii_only, encoding="ascii")
    assert made.returncode == 0, made.stderr
    assert "Traceback" not in made.stderr
    assert "report:" in made.stdout
    assert at.read_record(folder).finished
    assert "·" in (folder / "report.html").read_text("utf-8")
    made = process("report", str(folder), env=ascii_only, encoding="ascii")
    assert made.returncode == 0, made.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_is_told_and_ends_with_status_1() -> None:
    with open("/dev/full", "w") as full:
        made = process("plan", CELL, "--json", stdout=full)
    assert made.returncode == 1
    (line,) = made.stderr.splitlines()
    assert "standard output could not be written: No space left on device" in line


# Ctrl-C


def test_ctrl_c_says_what_was_kept_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CODE, "run", "tiny", "-o", str(folder), "--json"]
    with subprocess.Popen(
        [*command, "--set", "rounds=500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background inherits that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["round"] == 1
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert run.returncode == 130
    record = at.read_record(folder)
    assert record.status == "interrupted"
    (line,) = err.splitlines()
    assert f"interrupted: {len(record.rounds)} of 500 rounds are kept in '{folder}'" in line
    assert "go on with the same command and --resume" in line


def test_ctrl_c_before_anything_was_recorded(tmp_path: Path) -> None:
    with (
        pytest.raises(Interrupted, match="before anything was recorded"),
        told_when_interrupted(tmp_path / "run"),
    ):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (at.InputError("two\nlines"), 2),
        (at.RunError("two\nlines"), 1),
        (Interrupted("two\nlines"), 130),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
    ],
)
def test_how_a_command_ends(
    error: BaseException | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if error is not None:
            raise error

    assert ended(command) == status
    if "two" in str(error):
        assert capsys.readouterr().err == "airtune: two lines\n"
