"""Which cells a report shows: the right ones, in the right order, the same ones each time."""

from __future__ import annotations

import pandas as pd

from tasks.reporting.pictures.choose import choose, choose_for_heat, choose_new

THRESHOLDS = {"challenger": 0.5, "champion": 0.5}


def table(rows: dict[str, tuple[int, float, float]]) -> pd.DataFrame:
    """key -> label, challenger, champion."""
    cells = pd.DataFrame.from_dict(rows, orient="index", columns=["label", "challenger", "champion"])
    return cells.reset_index(names="key").assign(sha256=lambda t: t["key"] * 8, patient="p")


CELLS = table(
    {
        "both right": (1, 0.9, 0.8),
        "gained a little": (1, 0.6, 0.4),
        "gained much": (0, 0.1, 0.9),
        "lost": (1, 0.2, 0.7),
        "both sure against": (1, 0.01, 0.03),
        "one sure against": (0, 0.99, 0.6),
    }
)


def keys(chosen: pd.DataFrame, gallery: str) -> list[str]:
    return list(chosen.loc[chosen["gallery"] == gallery, "key"])


def test_each_gallery_holds_what_its_name_says() -> None:
    chosen, counts = choose(CELLS, THRESHOLDS, "tonight")
    assert keys(chosen, "gained") == ["gained much", "gained a little"]
    assert keys(chosen, "lost") == ["lost"]
    assert keys(chosen, "mistakes")[:2] == ["both sure against", "one sure against"]
    assert keys(chosen, "disputes") == ["both sure against"]
    assert set(keys(chosen, "right")) == {"both right", "gained a little", "gained much"}
    assert set(keys(chosen, "wrong")) == {"lost", "both sure against", "one sure against"}
    assert counts == {"gained": 2, "lost": 1, "mistakes": 3, "disputes": 1, "right": 3, "wrong": 3}


def test_one_model_alone_disputes_no_label() -> None:
    chosen, counts = choose(CELLS, {"challenger": 0.5}, "tonight")
    assert set(counts) == {"mistakes", "right", "wrong"}
    assert keys(chosen, "disputes") == []


def test_the_order_of_the_rows_does_not_matter_and_each_night_draws_another_sample() -> None:
    many = table({f"c{i}": (1, 0.9, 0.9) for i in range(60)})
    once, _ = choose(many, THRESHOLDS, "tonight")
    again, _ = choose(many.sample(frac=1, random_state=1), THRESHOLDS, "tonight")
    assert keys(once, "right") == keys(again, "right")
    assert keys(once, "right") != keys(choose(many, THRESHOLDS, "tomorrow")[0], "right")
    assert len(keys(once, "right")) == 12


def test_heat_maps_are_drawn_of_mistakes_of_both_kinds_and_of_right_calls() -> None:
    chosen, _ = choose(CELLS, THRESHOLDS, "tonight")
    picked = choose_for_heat(chosen)
    assert {"both sure against", "one sure against", "both right"} <= set(picked["key"])
    assert picked["key"].is_unique


def test_new_is_what_was_not_there_in_this_form() -> None:
    before = pd.DataFrame({"key": ["a", "b"], "sha256": ["1", "2"], "label": "Parasitized", "patient": "p"})
    now = pd.DataFrame(
        {
            "key": ["a", "b", "c", "d"],
            "sha256": ["1", "9", "3", ""],
            "label": ["Parasitized", "Parasitized", "Uninfected", "Uninfected"],
            "patient": "p",
        }
    )
    chosen, count = choose_new(now, before, "tonight")
    assert (list(chosen["key"]), count) == (["b", "c"], 2)
    assert choose_new(now, None, "tonight")[1] == 3
