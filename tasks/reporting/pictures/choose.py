"""The choice of cells that a report shows: from the predictions alone, the same ones each time. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from validation.digest import digest

ROLES = ("challenger", "champion", "other")
# A model with this probability of the other class disputes the label.
DISPUTES = 0.9
# Pictures of a gallery; disputes beyond these are listed by key.
SHOWN = {"gained": 24, "lost": 24, "mistakes": 24, "disputes": 24, "right": 12, "wrong": 12}
LISTED_DISPUTES = 200
HEAT_CELLS = 6

Mask = npt.NDArray[np.bool_]


def choose(
    predictions: pd.DataFrame, thresholds: Mapping[str, float], salt: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the cells of every gallery, in the order in which they are shown, and how many each has in all.

    ``predictions`` has key, sha256, patient, label (1 = Parasitized) and a column of probabilities for each role in
    ``thresholds``; the result has these columns and gallery. ``salt`` varies the samples from night to night.
    """
    right = _right(predictions, "challenger", thresholds)
    distance = (predictions["challenger"] - thresholds["challenger"]).abs()
    random = predictions["sha256"].map(lambda sha256: digest(salt, sha256))
    galleries: dict[str, tuple[Mask, pd.Series]] = {}
    if "champion" in thresholds:
        champion = _right(predictions, "champion", thresholds)
        apart = (predictions["challenger"] - predictions["champion"]).abs()
        galleries["gained"] = right & ~champion, -apart
        galleries["lost"] = ~right & champion, -apart
    galleries["mistakes"] = ~right, -distance
    if len(thresholds) > 1:
        against = _against(predictions, thresholds)
        galleries["disputes"] = against >= DISPUTES, pd.Series(-against, index=predictions.index)
    galleries["right"], galleries["wrong"] = (right, random), (~right, random)
    parts = [_part(predictions, name, chosen, order) for name, (chosen, order) in galleries.items()]
    return pd.concat(parts, ignore_index=True), {name: int(chosen.sum()) for name, (chosen, _) in galleries.items()}


def _right(predictions: pd.DataFrame, role: str, thresholds: Mapping[str, float]) -> Mask:
    called = (predictions[role] >= thresholds[role]) == (predictions["label"] == 1)
    return called.to_numpy(dtype=bool)


def _against(predictions: pd.DataFrame, thresholds: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Return the lowest probability, over all models, that the label is wrong."""
    scores = predictions[[role for role in ROLES if role in thresholds]].to_numpy(dtype=np.float64)
    infected = predictions["label"].to_numpy()[:, np.newaxis] == 1
    against: npt.NDArray[np.float64] = np.where(infected, 1 - scores, scores).min(axis=1)
    return against


def _part(predictions: pd.DataFrame, gallery: str, chosen: Mask, order: pd.Series) -> pd.DataFrame:
    ranked = predictions.assign(gallery=gallery, order=order)[chosen].sort_values(["order", "sha256"], kind="stable")
    return ranked.head(LISTED_DISPUTES if gallery == "disputes" else SHOWN[gallery]).drop(columns="order")


def choose_for_heat(chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the few cells whose heat maps are drawn: the worst mistakes first, then some that are right."""
    mistakes = chosen[chosen["gallery"] == "mistakes"]
    missed, alarms = (mistakes[mistakes["label"] == label].head(2) for label in (1, 0))
    right = chosen[(chosen["gallery"] == "right") & (chosen["label"] == 1)]
    return pd.concat([missed, alarms, right]).drop_duplicates("sha256").head(HEAT_CELLS).assign(gallery="heat")


def choose_new(rows: pd.DataFrame, before: pd.DataFrame | None, salt: str, each: int = 12) -> tuple[pd.DataFrame, int]:
    """Return a sample of tonight's new cells, ``each`` of a class, and how many are new.

    ``rows`` and ``before`` are tables of two snapshots (key, sha256, label, patient); a row is new where ``before``
    does not have these bytes at this key.
    """
    known = set(zip(before["key"], before["sha256"], strict=True)) if before is not None else set()
    is_new = [
        sha256 != "" and (key, sha256) not in known for key, sha256 in zip(rows["key"], rows["sha256"], strict=True)
    ]
    new = rows[np.array(is_new, dtype=bool)]
    drawn = new.assign(order=new["sha256"].map(lambda sha256: digest(salt, sha256))).sort_values(["order", "key"])
    sample = drawn.groupby("label", sort=True).head(each).sort_values("label", kind="stable")
    return sample.drop(columns="order").assign(gallery="new"), len(new)
