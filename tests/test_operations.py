"""Service units and container file: correct where they can be checked, and closed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airtune.cli import app
from airtune.deploy import loglevel
from airtune.errors import InputError

OPERATIONS = Path(__file__).resolve().parents[1] / "operations"
UNITS = ("airtune-server.service", "airtune-device@.service")
NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def analysed(unit: Path, *arguments: str) -> str:
    """Return what systemd-analyze says of a unit, stdout and stderr together."""
    done = subprocess.run(
        ["systemd-analyze", *arguments, str(unit)], text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def installed(unit: str, folder: Path) -> Path:
    """Write a unit as it would lie on a machine that has the command; a template as instance."""
    text = (OPERATIONS / "systemd" / unit).read_text()
    path = folder / unit.replace("@.", "@jetson-orin-nano-1.")
    path.write_text(text.replace("/opt/airtune/bin/airtune", "/bin/true"))
    return path


@NEEDS_SYSTEMD
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    path = installed(unit, tmp_path)
    assert analysed(path, "verify") == ""
    path.write_text(path.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in analysed(path, "verify")  # what is misspelt is seen


@NEEDS_SYSTEMD
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_closed(unit: str, tmp_path: Path) -> None:
    said = analysed(installed(unit, tmp_path), "security", "--offline=true", "--no-pager")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= 2.5


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_command_is_one_of_ours(unit: str) -> None:
    text = (OPERATIONS / "systemd" / unit).read_text()
    (command,) = re.findall(r"^ExecStart=/opt/airtune/bin/airtune (.+)$", text, re.MULTILINE)
    _, name, *rest = command.split()
    shown = CliRunner().invoke(app, ["deploy", name, "--help"], env={"COLUMNS": "200"}).output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for option in (word for word in rest if word.startswith("--")):
        assert option in plain


def test_the_container_runs_without_privileges() -> None:
    lines = (OPERATIONS / "Containerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if re.match(r"[A-Z]+ ", line)]
    last = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    users = [rest for word, rest in steps[last:] if word == "USER"]
    assert users == ["10001"]
    assert all(":" in rest and "latest" not in rest for word, rest in steps if word == "FROM")
    after = [word for word, _ in steps[steps.index(["USER", "10001"]) :]]
    assert "RUN" not in after  # nothing is written as that account but the state
    assert "COPY" not in after


def test_the_container_file_is_understood() -> None:
    for builder in ("podman", "docker"):
        if shutil.which(builder) is not None:
            break
    else:
        pytest.skip("neither podman nor docker is installed")
    ready = subprocess.run([builder, "info"], capture_output=True, text=True, check=False)
    if ready.returncode != 0:
        pytest.skip(f"{builder} cannot build here: {ready.stderr.strip().splitlines()[-1:]}")
    arguments = ["build", "--check"] if builder == "docker" else ["build", "--target", "build"]
    if builder == "podman":
        pytest.skip("podman has no check without a build; built by hand, see docs/deploy.md")
    root = OPERATIONS.parent
    done = subprocess.run(
        [builder, *arguments, "-f", str(OPERATIONS / "Containerfile"), str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_log_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loglevel.VARIABLE, "INFO")  # restored afterwards
    assert loglevel.gateway_level() == "error"
    loglevel.set_level("debug")
    assert loglevel.gateway_level() == "debug"
    loglevel.set_level("warning")
    assert loglevel.gateway_level() == "error"
    with pytest.raises(InputError, match="allowed are debug, info, warning, error"):
        loglevel.set_level("loud")
