"""Fixtures that the tests of several stages use."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.store.memory import MemoryStore
from tasks.context import Context
from tests.builders import CountingStore, Prepared, context_over, made_up_decision, plain_cells, prepare, registry_in
from validation.records import Candidate, ChampionRef

Crown = Callable[..., ChampionRef]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log lines of the stages, also after a command of another test has reconfigured their loggers."""
    monkeypatch.setattr(logging.getLogger("tasks"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def first_evening(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Prepared]:
    """All stages up to the pack, once for all tests."""
    context = context_over(CountingStore(plain_cells()), tmp_path_factory.mktemp("evening"))
    return context, prepare(context)


@pytest.fixture
def prepared(first_evening: tuple[Context, Prepared]) -> Prepared:
    """The records before the trainings of a night over plain cells (tests.builders.plain_cells)."""
    return first_evening[1]


@pytest.fixture
def context(first_evening: tuple[Context, Prepared], home: Path) -> Context:
    """The context of that night, with a store and a home folder for this test alone."""
    before = first_evening[0]
    assert isinstance(before.store, MemoryStore)
    shutil.copytree(before.workspace.home / "cache", home / "cache", copy_function=os.link)
    return context_over(CountingStore(before.store.objects), home)


@pytest.fixture
def registry(home: Path, empty_registry: Path) -> Registry:
    """A real registry, with nothing in it."""
    return registry_in(home, empty_registry)


@pytest.fixture
def crown(context: Context, registry: Registry) -> Crown:
    """Make a candidate champion, as if an earlier night had promoted it."""

    def make_champion(candidate: Candidate) -> ChampionRef:
        reference = registry.register(
            candidate, context.store.get(candidate.model_key), made_up_decision(f"crowned {candidate.id}")
        )
        registry.set_champion(reference.version)
        return reference

    return make_champion


@pytest.fixture
def tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model files are tried in this process; test_reproduce covers the clean process of a promotion."""

    def rescore(
        model: bytes,
        images: npt.NDArray[np.uint8],
        *,
        sha256_expected: str,
        folds: npt.NDArray[np.integer] | None = None,
    ) -> npt.NDArray[np.float32]:
        file = ModelFile(model, sha256_expected=sha256_expected)
        return file.score(images) if folds is None else file.score_by_fold(images, folds)

    monkeypatch.setattr("tasks.champion.reproduce.rescore", rescore)
