"""Folders of data: one file a part, shards as on the hub, and what `save_to_disk` writes."""

from __future__ import annotations

import re
from pathlib import Path

from airtune.data.parts import SUFFIXES, Part, Parts, TablePart, part_of
from airtune.data.records import COMPRESSED, format_of
from airtune.errors import InputError

PART_NAME = re.compile(
    r"(?P<part>train|test)([-_.](?P<shard>\d+)(-of-(?P<shards>\d+))?)?(-[0-9a-f]{16})?",
    re.IGNORECASE,
)
"""``train``, ``train-00000-of-00002``, ``test_1``; the hub's older files end in 16 hex digits."""

DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}


def parts_of_folder(folder: Path, config: str | None = None) -> Parts:
    """Find the train part and the test part in a folder.

    Looked for in this order: what `save_to_disk` wrote; files ``train.*`` or shards
    ``train-00000-of-00002.*`` in the folder, in its ``data``, in the folder named like the
    configuration, in the only subfolder that has some; the only data file there is.

    Raises:
        InputError: there is no train part, more than one, or a shard is missing.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder)
    if (train := _part(folder, "train")) is not None:
        return Parts(train, _part(folder, "test"))
    inside = [sub for sub in _subfolders(folder) if _has_train(sub)]
    named = [sub for sub in inside if sub.name in ("data", config)]
    if len(chosen := named or inside) == 1:
        return Parts(_needed_part(chosen[0]), _part(chosen[0], "test"))
    if inside:
        names = ", ".join(f"'{sub}'" for sub in chosen)
        raise InputError(f"task.source = '{folder}': several folders have a train file: {names}")
    files = [path for path in _data_files(folder) if path.name not in DESCRIPTIONS]
    if len(files) == 1 and PART_NAME.fullmatch(_stem(files[0])) is None:
        return Parts(part_of((files[0],)), None)
    entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise InputError(
        f"task.source = '{folder}': no train.jsonl or train.csv there, but {entries}; also "
        "allowed: train-00000-of-00001.parquet, the folders data/ and main/ with such files, "
        "what save_to_disk wrote"
    )


def _saved(folder: Path) -> Parts:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of pyarrow, json, the file system or datasets itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"task.source = '{folder}': cannot be read ({reason[:160]})") from None
    if not isinstance(saved, datasets.DatasetDict):
        return Parts(TablePart(str(folder), saved), None)
    if "train" not in saved:
        raise InputError(f"task.source = '{folder}': no train split there, but {', '.join(saved)}")
    parts = {name: TablePart(str(folder / name), table) for name, table in saved.items()}
    return Parts(parts["train"], parts.get("test"))


def _needed_part(folder: Path) -> Part:
    part = _part(folder, "train")
    assert part is not None
    return part


def _part(folder: Path, name: str) -> Part | None:
    """Return a folder's train or test part: files of its name, or all files of its subfolder."""
    files = _files_of(folder, name)
    inside = folder / name
    if inside.is_dir():
        if files:
            raise InputError(f"{folder}: both '{files[0].name}' and a folder '{name}' are there")
        if (inside / "state.json").is_file():
            return _saved(inside).train
        files = _data_files(inside)
    if not files:
        return None
    kinds = {_suffixes(path) for path in files}
    shards = [match for path in files if (match := PART_NAME.fullmatch(_stem(path)))]
    whole = [match for match in shards if match["shard"] is None]
    if len(kinds) > 1 or (whole and len(files) > 1):
        names = ", ".join(path.name for path in files[:4])
        raise InputError(f"{folder}: {names}: more than one {name} file; keep one of them")
    totals = {int(match["shards"]) for match in shards if match["shards"]}
    numbers = sorted(int(match["shard"]) for match in shards if match["shard"])
    if totals and (len(totals) > 1 or numbers != list(range(min(totals)))):
        raise InputError(
            f"{folder}: {len(files)} {name} files where their names say "
            f"{' or '.join(map(str, sorted(totals)))} ({files[0].name}, …); fetch what is missing"
        )
    return part_of(tuple(files))


def _has_train(folder: Path) -> bool:
    inside = folder / "train"
    return bool(_files_of(folder, "train")) or (inside.is_dir() and bool(_data_files(inside)))


def _files_of(folder: Path, name: str) -> list[Path]:
    def is_part(path: Path) -> bool:
        match = PART_NAME.fullmatch(_stem(path))
        return match is not None and match["part"].lower() == name

    return [path for path in _data_files(folder) if is_part(path)]


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and format_of(path) in SUFFIXES
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(_suffixes(path))]


def _suffixes(path: Path) -> str:
    """Return ``.jsonl.gz`` of ``train.jsonl.gz``, as it is written."""
    packed = path.suffix if path.suffix.lower() in COMPRESSED else ""
    return Path(path.name.removesuffix(packed)).suffix + packed
