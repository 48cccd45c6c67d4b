"""A bucket as a lab keeps it: every night cells arrive, some are overwritten, moved or deleted; and CNNs for them.

Each colour channel of a cell tells its class with another reliability, so a model that looks at one channel is as good
as that channel: from hopeless to nearly right.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from infra.scoring.model_file import INPUT, LOGIT
from infra.store.keys import LABELED
from tests.builders import SIDE, png
from tests.model_files import assembled
from validation.records import NEGATIVE, POSITIVE

RELIABLE = (0.72, 0.86, 0.97)
CELLS_EACH = 6
# When there are more, the oldest go: a lab that deletes what it has archived.
MOST = 540


class Bucket:
    """The input folder of a store, and what is known to lie there: key -> bytes."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = Random(f"bucket {seed}")
        self.rng = np.random.default_rng(seed)
        self.patients = 0
        self.objects: dict[str, bytes] = {}

    def deliver(self, patients: int) -> None:
        """New patients' cells arrive; the oldest of too many go."""
        for _ in range(patients):
            self.patients += 1
            for number in range(CELLS_EACH):
                label = (POSITIVE, NEGATIVE)[number % 2]
                name = f"C{self.patients}P{self.patients}ThinF_IMG_20260101_cell_{number}.png"
                self.put(f"{LABELED}{label}/{name}", self._cell(label))
        for key in list(self.objects)[: max(0, len(self.objects) - MOST)]:
            self.delete(key)

    def stir(self) -> None:
        """A few cells are overwritten by other pixels, moved to another name, or deleted."""
        for key in self.random.sample(sorted(self.objects), 3):
            label = key.split("/")[1]
            what = self.random.choice(("overwrite", "move", "delete"))
            if what == "overwrite" and label in (POSITIVE, NEGATIVE):
                self.put(key, self._cell(label))
            elif what == "move":
                data = self.objects[key]
                self.delete(key)
                self.put(key.replace(".png", f"_again{self.random.randrange(1000)}.png"), data)
            elif what == "delete":
                self.delete(key)

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.objects[key] = data

    def delete(self, key: str) -> None:
        (self.root / key).unlink()
        del self.objects[key]

    def is_untouched(self) -> bool:
        """Whether all that lies there is what was put there, to the last byte."""
        found = {str(path.relative_to(self.root)): path for path in (self.root / LABELED).rglob("*") if path.is_file()}
        return found.keys() == self.objects.keys() and all(
            path.read_bytes() == self.objects[key] for key, path in found.items()
        )

    def _cell(self, label: str) -> bytes:
        right = self.rng.random(3) < RELIABLE
        told = right == (label == POSITIVE)
        return png(self.rng.integers(-20, 21, (20, 18, 3)) + 60 + 120 * told)


def looking_at(weights: tuple[float, float, float], side: int = SIDE) -> bytes:
    """Return a member's file: its logit is a weighted mean of an image's channels."""
    from onnx import TensorProto, helper

    constants = {
        "over": np.array([1, 2], np.int64),
        "weights": np.array([[weight] for weight in weights], np.float32),
        "centre": np.array(105.0, np.float32),
        "sharpness": np.array(0.05, np.float32),
        "flat": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "over"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["sum"]),
        helper.make_node("Reshape", ["sum", "flat"], ["mean"]),
        helper.make_node("Sub", ["mean", "centre"], ["apart"]),
        helper.make_node("Mul", ["apart", "sharpness"], [LOGIT]),
    ]
    return assembled(nodes, constants, ["n", side, side, 3], told=LOGIT)


def draw_weights(random: Random, odds: tuple[float, float, float] = (2, 2, 1)) -> tuple[float, float, float]:
    """Return how tonight's CNN looks at a cell: mostly at one channel, by these odds, a little at the others."""
    best = random.choices((0, 1, 2), odds)[0]
    rest = [random.uniform(0, 0.2) for _ in range(3)]
    rest[best] = 1 - sum(rest) + rest[best]
    return rest[0], rest[1], rest[2]
