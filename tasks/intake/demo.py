"""The demo's store and registry: one pair for synthetic cells, another for real ones.

They are separate: a model trained on synthetic cells must not become champion over real ones, or be challenged by them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from infra.local.files import write_atomic
from infra.store.base import Store
from infra.store.keys import LABELED, SYNTHETIC_MARK
from infra.store.records import Records
from tasks.intake.synthetic_cells import SyntheticPlan, folder_of, night_cells
from tasks.training.places import at_once
from validation.errors import ObjectMissing, UsageError
from validation.records import Night

log = logging.getLogger(__name__)

HEADER = "# Written by `retrain demo`, which overwrites it. Remove this line to keep the file as your own.\n"

# A first night should take minutes on a laptop: smaller cells, fewer members, a smaller network, fewer steps. Such
# small batches keep hardly one core busy: at least two members are trained at once.
SMALL = """
[training]
side = 32
members = 3
at_once = {at_once}
keras = {{ epochs = 6, min_steps = 0, learning_rate = 0.004, dropout = 0.1 }}
[training.fastai]
architecture = "xresnet18"
epochs = 2
min_steps = 0
batch_size = 32
learning_rate = 0.002
small_share = 0
"""


def choose_place(config: Path, home: Path, *, synthetic: bool) -> bool:
    """Write the demo's store and registry to the settings file; return False if the file is the user's own."""
    if config.exists() and not config.read_text(errors="replace").startswith(HEADER):
        return False
    place = home / ("synthetic" if synthetic else "cells")
    lines = {
        "store": (place / "store").as_uri(),
        "registry": f"sqlite:///{place / 'mlflow.db'}",
        "registry_artifacts": (place / "mlflow-artifacts").as_uri(),
    }
    # A JSON string is a TOML basic string.
    text = HEADER + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    if synthetic:
        text += SMALL.format(at_once=max(2, at_once(None)))
    write_atomic(config, text.encode())
    (place / "store").mkdir(parents=True, exist_ok=True)
    return True


def deliver(store: Store, plan: SyntheticPlan, *, progress: Callable[[int], None] = lambda _: None) -> tuple[int, int]:
    """Put the next night's synthetic cells into the store; return the night's number and its number of cells.

    A night that was delivered but not finished (it was killed) is delivered again instead, which changes nothing.

    Raises:
        UsageError: when the store holds cells that are not synthetic.
    """
    night = _next_night(store)
    if night == 1 and not store.exists(SYNTHETIC_MARK) and next(iter(store.list(LABELED)), None) is not None:
        raise UsageError(
            f"the store {store.uri} holds cells already, and synthetic ones must not be mixed with them",
            "unset RETRAIN_STORE, or give the demo a separate store",
        )
    # The mark goes first: if this is killed, synthetic cells are still never taken for real ones.
    mark = {"delivered": night, "seed": plan.seed, "at": datetime.now(UTC).isoformat()}
    store.put(SYNTHETIC_MARK, json.dumps(mark).encode())
    count = 0
    for count, cell in enumerate(night_cells(night, plan), 1):
        store.create(f"{LABELED}{folder_of(cell)}", cell.png)
        progress(count)
    return night, count


def refuse_synthetic(store: Store) -> None:
    """Refuse to put real cells where synthetic ones are.

    Raises:
        UsageError: when the store holds synthetic cells.
    """
    if store.exists(SYNTHETIC_MARK):
        raise UsageError(
            f"the store {store.uri} holds synthetic cells, and real ones must not be mixed with them",
            "choose another store with RETRAIN_STORE",
        )


def _next_night(store: Store) -> int:
    try:
        mark = json.loads(store.get(SYNTHETIC_MARK))
    except ObjectMissing:
        return 1
    last = Records(store).latest("night", Night)
    finished = last is not None and last.finished_at > datetime.fromisoformat(mark["at"])
    return int(mark["delivered"]) + finished
