"""Doubles: the first that was seen stays; what cannot be right under two names is said so."""

from __future__ import annotations

import numpy as np
import pandas as pd

from validation.images.duplicates import near_duplicate_findings, without_duplicates
from validation.records import NEGATIVE, POSITIVE

COLUMNS = ["key", "label", "patient", "pixels", "first_seen", "fingerprint"]
# Fingerprints of cells that have nothing to do with each other.
FAR = [np.random.default_rng(i).integers(-127, 128, 192).astype(np.int8).tobytes().hex() for i in range(4)]


def facts(*rows: tuple[str, str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame([[*row, FAR[i]] for i, row in enumerate(rows)], columns=COLUMNS)


def test_the_first_seen_stays_whatever_its_name() -> None:
    kept, findings = without_duplicates(
        facts(("z", POSITIVE, "P1", "same", "2026-01-01"), ("a", POSITIVE, "P1", "same", "2026-01-02"))
    )
    assert list(kept["key"]) == ["z"]
    assert [(f.reason, f.key, f.detail) for f in findings] == [("duplicate", "a", "the same pixels as z")]


def test_one_image_under_two_patients_names_both() -> None:
    kept, findings = without_duplicates(
        facts(
            ("a", POSITIVE, "P1", "same", "2026-01-02"),
            ("b", POSITIVE, "P2", "same", "2026-01-01"),
            ("c", POSITIVE, "", "other", "2026-01-01"),
            ("d", POSITIVE, "P3", "other", "2026-01-02"),
        )
    )
    assert list(kept["key"]) == ["b", "c"]
    assert {f.key: (f.reason, f.detail) for f in findings} == {
        "a": ("two patients", "the same pixels as b of P2, which was seen first"),
        "d": ("two patients", "the same pixels as c of no patient, which was seen first"),
    }


def test_one_image_under_both_classes_is_left_out_wherever_it_is() -> None:
    kept, findings = without_duplicates(
        facts(
            ("a", POSITIVE, "P1", "same", "2026-01-01"),
            ("b", NEGATIVE, "P2", "same", "2026-01-02"),
            ("c", POSITIVE, "P1", "same", "2026-01-03"),
            ("d", POSITIVE, "P1", "own", "2026-01-03"),
        )
    )
    assert list(kept["key"]) == ["d"]
    assert {f.key: f.reason for f in findings} == dict.fromkeys("abc", "both classes")


def test_a_near_double_names_the_first_and_how_they_are_apart() -> None:
    table = facts(
        ("a", POSITIVE, "P1", "1", "2026-01-03"),
        ("b", POSITIVE, "P1", "2", "2026-01-01"),
        ("c", NEGATIVE, "P2", "3", "2026-01-02"),
        ("d", POSITIVE, "P1", "4", "2026-01-01"),
    )
    table["fingerprint"] = [FAR[0], FAR[0], FAR[0][:-2] + "00", FAR[1]]
    assert {f.key: f.detail for f in near_duplicate_findings(table)} == {
        "a": "hardly differs from b",
        "c": "hardly differs from b, of another patient and of the other class",
    }


def test_nothing_at_all_has_no_doubles() -> None:
    kept, findings = without_duplicates(facts())
    assert kept.empty
    assert findings == near_duplicate_findings(facts()) == []
