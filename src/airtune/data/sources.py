"""Where data comes from: a file, a folder, or a dataset of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airtune.data.folders import parts_of_folder
from airtune.data.parts import SUFFIXES, Parts, TablePart, allowed, part_of
from airtune.data.records import format_of
from airtune.errors import InputError

PROBE_TIMEOUT_S = 4.0


def open_source(source: str, *, config: str | None = None) -> Parts:
    """Find a file, a folder with a train file (and a test file), or a hub dataset.

    Args:
        source: a path, or a hub id ``owner/name`` where no such path exists.
        config: the configuration, where a hub dataset or a copy of one has several.

    Raises:
        InputError: there is no such file, no train file in the folder, or no such dataset.
    """
    path = Path(source)
    if path.is_dir():
        return parts_of_folder(path, config)
    if path.exists():
        return Parts(part_of((path,)), None)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and format_of(path) not in SUFFIXES:
        return _open_hub(source, config)
    raise InputError(
        f"task.source = '{source}': no such file or folder; give a {allowed()} file, a folder "
        "with a train file, or a hub id such as openai/gsm8k"
    )


def _open_hub(id: str, config: str | None) -> Parts:
    import datasets  # a second to import, and JSON and CSV do not need it

    with _offline_unless_reachable() as reachable:
        try:
            splits = datasets.load_dataset(id, config)
        except Exception as error:  # the hub client's errors have no common base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            where = "from the hub" if reachable else "offline: the hub cannot be reached"
            raise InputError(
                f"cannot have the dataset '{id}' {where}, and it is not in the local cache "
                f"({reason[:160]}); connect, or set task.source to a local {allowed()} file"
            ) from None
    if "train" not in splits:
        raise InputError(f"the dataset '{id}' has no train split, but {', '.join(splits)}")
    test = splits.get("test")
    return Parts(TablePart(id, splits["train"]), None if test is None else TablePart(id, test))


@contextmanager
def _offline_unless_reachable() -> Iterator[bool]:
    """Switch the hub client to offline mode when one short request fails.

    Its own retries take half a minute to say so, and then without a look at the local cache.
    """
    import datasets
    import huggingface_hub as hub

    reachable = not hub.constants.HF_HUB_OFFLINE
    if reachable:
        try:
            hub.get_session().head(hub.constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
        except Exception:  # of whatever HTTP library the client uses
            reachable = False
    before = hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reachable:
        hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reachable
    finally:
        hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
