"""Measuring and packing on a Dask cluster of two workers: the very digests that this machine's processes come to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.environment import environment_kept
from infra.local.files import Workspace
from infra.processes.dask_cluster import open_engine
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from infra.store.keys import LABELED
from tasks.cells import on_dask as chunks
from tasks.cells.on_dask import Content, draw_chunk, measure_chunk, refuse_others, versions
from tasks.cells.packing import load_pack
from tests.builders import Prepared, context_over, plain_cells, prepare
from validation.digest import sha256
from validation.errors import RetrainError, SettingsError, Unreachable

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a local cluster of two worker processes."""
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed: pip install '.[dask]'")
    from distributed import LocalCluster

    with environment_kept():  # of which other tests of this process train with all threads
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", protocol="tcp")
    with cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """Cells, some the same under two keys, and what is no cell."""
    store = FolderStore(tmp_path_factory.mktemp("engine"))
    cells = plain_cells(20, 4)
    key = next(iter(cells))
    cells[f"{LABELED}Parasitized/copy of one.png"] = cells[key]
    cells[f"{LABELED}Parasitized/half.png"] = cells[key][:60]
    cells[f"{LABELED}Uninfected/text.png"] = b"no picture"
    for key, data in cells.items():
        store.put(key, data)
    return store


def results(store: FolderStore, prepared: Prepared) -> tuple[str, ...]:
    """Return all digests that the data stages come to, also those of their tables' bytes."""
    made = prepared.validation
    tables = [sha256(store.get(key)) for key in (made.facts, made.findings, prepared.split.table)]
    return (prepared.snapshot.id, made.id, prepared.split.id, prepared.pack.pixels, *tables)


def run(home: Path, store: FolderStore, **settings: object) -> tuple[str, ...]:
    """Run the data stages on a fresh home, over a store whose records are gone; return all their digests."""
    for path in (store.root / "retraining").rglob("*"):
        if path.is_file():
            path.unlink()
    context = context_over(store, home, **settings)
    prepared = prepare(context)
    assert load_pack(context, prepared.pack).shape[0] == prepared.pack.cells > 60
    return results(store, prepared)


@pytest.mark.usefixtures("no_expectations")
def test_the_same_digests_with_two_workers_as_with_processes(
    scheduler: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(tmp_path / "here", store)
    for name in ("tasks.cells.measuring", "tasks.cells.packing"):
        monkeypatch.setattr(f"{name}.WORTH_AN_ENGINE", 1)
        # All of it is the engine's: nothing is decoded in this process or its own.
        monkeypatch.setattr("tasks.cells.measuring._measure_batch", _not_here)
        monkeypatch.setattr("tasks.cells.packing.square_of", _not_here)
    monkeypatch.setattr(chunks, "CHUNK", 10)
    assert run(tmp_path / "there", store, engine=f"dask+{scheduler}") == here


def _not_here(*_: object) -> None:
    raise AssertionError("done on this machine")


def test_few_images_are_not_worth_an_engine(store: FolderStore, tmp_path: Path, no_expectations: None) -> None:
    assert run(tmp_path / "few", store, engine="dask+tcp://127.0.0.1:1")


def test_chunks_are_pure_and_name_problems(store: FolderStore, tmp_path: Path) -> None:
    cells = plain_cells(20, 4)
    place = chunks.Place.of(Settings(home=tmp_path, store=store.uri))
    contents: list[Content] = [(sha256(data), (key,)) for key, data in list(cells.items())[:3]]
    broken, gone = b"no picture", "0" * 64
    contents += [(sha256(broken), ("labeled/nowhere.png", f"{LABELED}Uninfected/text.png")), (gone, (contents[0][1]))]
    answers = measure_chunk(place, contents, 4_096)
    assert [answer[0] for answer in answers.values()] == ["missing", "facts", "facts", "facts", "refused"]
    assert answers == measure_chunk(place, contents, 4_096)
    drawn = draw_chunk(place, [*contents[:3], contents[4]], 16, 4_096)
    assert [digest for digest, _ in drawn] == [digest for digest, _ in contents[:3]]
    assert {len(square) for _, square in drawn} == {16 * 16 * 3}
    assert not Workspace(tmp_path).home.joinpath("cache").exists()


def _die_once(mark: str) -> int:
    path = Path(mark)
    if not path.exists():
        path.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def _fail() -> None:
    raise RetrainError("this one", "do that")


def test_a_chunk_whose_worker_is_killed_is_done_by_another(scheduler: str, tmp_path: Path) -> None:
    with open_engine(f"dask+{scheduler}") as engine:
        done = list(engine.map(_die_once, [(str(tmp_path / "mark"),)] * 5))
        assert len(done) == 5
        assert os.getpid() not in done
        with pytest.raises(RetrainError, match="this one") as caught:
            list(engine.map(_fail, [()]))
        assert caught.value.hint == "do that"


def test_workers_with_other_versions_are_refused(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(f"dask+{scheduler}") as engine:
        refuse_others(engine)
        monkeypatch.setattr(chunks, "FACTS_VERSION", 99)
        assert versions()["facts"] == "99"
        with pytest.raises(RetrainError, match=r"facts \d+ instead of 99"):
            refuse_others(engine)


def test_a_cluster_of_this_machine_leaves_the_trainings_after_it_all_their_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dask limits its workers to one thread each, by environment variables of this process."""
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed: pip install '.[dask]'")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    before = dict(os.environ)
    with open_engine("dask") as engine:
        ((threads, process),) = engine.map(_threads_and_place, [()])
        assert threads == "1"
        assert process != os.getpid()
    assert dict(os.environ) == before


def _threads_and_place() -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


def test_a_missing_engine_is_reported_soon(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(Unreachable, match="the engine cannot be used"),
        open_engine("dask+tcp://127.0.0.1:1"),
    ):
        raise AssertionError("no scheduler is there")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(SettingsError, match="not installed") as caught, open_engine("dask"):
        pass
    assert "malaria-retraining[dask]" in caught.value.hint


@pytest.mark.parametrize("name", ["ray", "dask+http://host:1", "dask+tcp://me:secret@host:1", "dask+tcp://host"])
def test_an_impossible_engine_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Settings(home=tmp_path, engine=name)


def test_the_engine_is_no_part_of_a_nights_name(tmp_path: Path) -> None:
    assert Settings(home=tmp_path, engine="dask").fingerprint() == Settings(home=tmp_path).fingerprint()
