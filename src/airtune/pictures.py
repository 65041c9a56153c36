"""Figures that commands write: which paths are allowed, and what cannot be written in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airtune.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_picture(path: Path) -> None:
    """Refuse a picture's path that cannot be written.

    Raises:
        InputError: its name ends in neither .svg nor .png, or its folder does not exist.
    """
    if path.suffix not in (".svg", ".png"):
        raise InputError(f"--out '{path}': allowed: a name that ends in .svg or .png")
    if not path.parent.is_dir():
        raise InputError(f"--out '{path}': the folder '{path.parent}' does not exist")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as its path's name says; raises `InputError` where that cannot be done."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(f"--out '{path}': {error.strerror}") from None
