"""What every test module shares: markers that skip with a reason, and the shared data folder."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from airtune.plugins import loading, registry

# A verdict on a commit must not depend on chance; `--hypothesis-profile explore` goes looking.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        skip = pytest.mark.skip(reason="slow: minutes on two cores; run with --run-slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the checkout with GSM8K; tests that want it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: the sums of every run are taken in the same order."""
    import torch  # seconds, which the tests of other parts need not wait for

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Calls]:
    """Note the calls of a function, named by the module that uses it, and let them go on."""

    def noted_calls(name: str) -> Calls:
        calls: Calls = []
        module, _, own = name.rpartition(".")
        real = getattr(importlib.import_module(module), own)

        def noted(*given: Any, **named: Any) -> Any:
            calls.append((given, named))
            return real(*given, **named)

        monkeypatch.setattr(name, noted)
        return calls

    return noted_calls


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Leave what earlier tests left over: finalisers fail where a test recurses to the limit."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def no_plugins_left() -> Iterator[None]:
    """Take what a test registers out of the registries again."""
    since = registry.added()
    yield
    registry.remove(registry.added_since(since))
    for known in (loading._LOADED, loading._INSTALLED, loading._LOOKED_UP):
        known.clear()
