"""The demo: a separate store and registry, one night after the other, synthetic and real cells never mixed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.settings.settings import load_settings
from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.keys import SYNTHETIC_MARK
from infra.store.memory import MemoryStore
from infra.store.records import Records
from tasks.intake.demo import choose_place, deliver, refuse_synthetic
from tasks.intake.synthetic_cells import SyntheticPlan, folder_of, night_cells
from validation.errors import UsageError
from validation.records import Night, Verdict

PLAN = SyntheticPlan(patients=3, cells_per_patient=3, new_patients=2, scale=0.3)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path / "store")


def keys(night: int) -> set[str]:
    return {f"labeled/{folder_of(cell)}" for cell in night_cells(night, PLAN)}


def stored(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("labeled/")}


def finish_night(store: Store) -> None:
    night = Night(
        id="night",
        verdict=Verdict.KEPT,
        sentence="",
        decision=None,
        champion_before=None,
        champion_after=None,
        challenger=None,
        challenger_model=None,
        metrics={},
        images={},
        seconds={},
        report=None,
        synthetic=True,
        started_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
    )
    Records(store).point("night", night)


class TestPlace:
    def test_the_settings_name_a_separate_store_and_registry(self, home: Path) -> None:
        config = home / "retrain.toml"
        assert choose_place(config, home, synthetic=True)
        settings = load_settings()
        assert settings.store == (home / "synthetic" / "store").as_uri()
        assert settings.registry.get_secret_value() == f"sqlite:///{home}/synthetic/mlflow.db"
        assert settings.registry_artifacts == (home / "synthetic" / "mlflow-artifacts").as_uri()
        assert (home / "synthetic" / "store").is_dir()
        assert (settings.training.at_once or 0) >= 2

    def test_real_cells_have_another_store(self, home: Path) -> None:
        assert choose_place(home / "retrain.toml", home, synthetic=True)
        synthetic = load_settings()
        assert choose_place(home / "retrain.toml", home, synthetic=False)
        real = load_settings()
        assert real.store != synthetic.store
        assert real.registry != synthetic.registry
        assert real.registry_artifacts != synthetic.registry_artifacts

    def test_a_person_s_own_settings_are_never_overwritten(self, home: Path) -> None:
        home.mkdir()
        config = home / "retrain.toml"
        for own in ('store = "s3://mine"\n', "", "\ufeff# Written by hand\n"):
            config.write_text(own)
            assert not choose_place(config, home, synthetic=True)
            assert config.read_text() == own

    def test_without_its_first_line_the_file_is_the_users_own(self, home: Path) -> None:
        config = home / "retrain.toml"
        choose_place(config, home, synthetic=True)
        config.write_text("".join(config.read_text().splitlines(keepends=True)[1:]))
        mine = config.read_text()
        assert not choose_place(config, home, synthetic=False)
        assert config.read_text() == mine

    def test_any_path_makes_a_readable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = tmp_path / 'it\'s "my" \\ home ä'
        monkeypatch.setenv("RETRAIN_HOME", str(home))
        choose_place(home / "retrain.toml", home, synthetic=True)
        assert load_settings().registry.get_secret_value() == f"sqlite:///{home}/synthetic/mlflow.db"


class TestDelivery:
    def test_the_first_night_delivers_its_cells_and_a_mark(self, store: Store) -> None:
        told: list[int] = []
        assert deliver(store, PLAN, progress=told.append) == (1, len(keys(1)))
        assert set(stored(store)) == keys(1)
        assert told == list(range(1, len(keys(1)) + 1))
        assert json.loads(store.get(SYNTHETIC_MARK))["delivered"] == 1

    def test_a_night_that_was_not_finished_is_delivered_again_and_changes_nothing(self, store: Store) -> None:
        deliver(store, PLAN)
        before = stored(store)
        assert deliver(store, PLAN) == (1, len(keys(1)))
        assert stored(store) == before

    def test_after_a_finished_night_the_next_is_delivered(self, store: Store) -> None:
        deliver(store, PLAN)
        finish_night(store)
        assert deliver(store, PLAN) == (2, len(keys(2)))
        assert set(stored(store)) == keys(1) | keys(2)
        assert deliver(store, PLAN)[0] == 2
        finish_night(store)
        assert deliver(store, PLAN)[0] == 3

    def test_a_delivery_that_was_killed_is_completed(self, store: Store) -> None:
        class Killed(BaseException):
            pass

        def killed(count: int) -> None:
            if count == 3:
                raise Killed

        with pytest.raises(Killed):
            deliver(store, PLAN, progress=killed)
        assert len(stored(store)) == 3
        # The mark is written before the first cell: these three are never taken for real ones.
        with pytest.raises(UsageError):
            refuse_synthetic(store)
        assert deliver(store, PLAN)[0] == 1
        assert set(stored(store)) == keys(1)

    def test_synthetic_cells_never_go_among_real_ones(self, store: Store) -> None:
        store.put("labeled/Parasitized/real.png", b"real")
        with pytest.raises(UsageError, match="must not be mixed") as caught:
            deliver(store, PLAN)
        assert "RETRAIN_STORE" in caught.value.hint
        assert stored(store) == {"labeled/Parasitized/real.png": b"real"}
        assert not store.exists(SYNTHETIC_MARK)

    def test_real_cells_never_go_among_synthetic_ones(self, store: Store) -> None:
        refuse_synthetic(store)
        deliver(store, PLAN)
        with pytest.raises(UsageError, match="holds synthetic cells"):
            refuse_synthetic(store)
