"""Two machines, each with a home folder of its own, on one store and one registry, really at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.store.folder import FolderStore
from tests.flows.faults.conftest import Prefect
from tests.nights import Nights, bring
from tests.sound import check_sound

pytestmark = [pytest.mark.server, pytest.mark.slow(minutes=1), pytest.mark.longest]


@pytest.fixture
def patient(tmp_path: Path, prefect: Prefect, empty_registry: Path) -> Iterator[Nights]:
    """Nights that ask a busy server again, as a user's do."""
    made = Nights(tmp_path, empty_registry, PREFECT_API_URL=prefect.url)
    yield made
    made.close()


def test_nights_of_two_homes_at_once_end_with_one_decision_one_look_and_one_champion(patient: Nights) -> None:
    one, two = patient.home("one"), patient.home("two")
    (two / "mlflow.db").unlink()
    shutil.rmtree(two / "store")
    shared: dict[str, Any] = {
        "RETRAIN_STORE": (one / "store").as_uri(),
        "RETRAIN_REGISTRY": f"sqlite:///{one / 'mlflow.db'}",
        "RETRAIN_REGISTRY_ARTIFACTS": (one / "mlflow-artifacts").as_uri(),
    }
    for number in range(3):
        started = [patient.start(home, "run", "--json", **shared) for home in (one, two)]
        ended = [patient.wait(night) for night in started]
        assert [night.code for night in ended] == [0, 0], "\n\n".join(night.err for night in ended)
        first, second = (night.night for night in ended)
        assert first["champion_after"] == second["champion_after"]
        # Whoever comes second goes on with what the first has stored; it may even find nothing new.
        assert first["decision"] == second["decision"]
        champions = check_sound(one)
        assert champions[-1] == first["champion_after"]
        assert len(champions) == len(set(champions))
        looks = list(FolderStore(one / "store").list("retraining/looks/"))
        assert len(looks) <= 1 + number
        bring(one, 6, first=1_000 * (number + 1))
    assert not (two / "mlflow.db").exists()
    assert not (two / "store").exists()
