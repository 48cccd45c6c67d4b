"""Validate: each reason for leaving an image out, with its near miss; and the batch as a whole."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.context import Context
from tasks.pull import pull
from tasks.validate import EXAMPLES, FACTS, validate
from tests.builders import CountingStore, context_over, png, synthetic_cells, with_settings
from validation.digest import sha256
from validation.errors import StoreUnreachable
from validation.records import CLASSES, NEGATIVE, POSITIVE, ValidationResult

CELLS = synthetic_cells()
KEY = f"labeled/{POSITIVE}/C9P9thin_cell_1.png"
NOISE = np.random.default_rng(5).integers(1, 256, (40, 30, 3)).astype(np.uint8)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(CELLS)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home)


def judged(context: Context) -> ValidationResult:
    return validate(context, pull(context))


def facts(context: Context, result: ValidationResult) -> pd.DataFrame:
    return context.records.load_table(result.facts)


def findings(context: Context, result: ValidationResult, *, warnings: bool = True) -> dict[str, str]:
    table = context.records.load_table(result.findings)
    if not warnings:
        table = table[table["severity"] != "warn"]
    return dict(zip(table["key"], table["reason"], strict=True))


def failed(result: ValidationResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed and check.severity == "invalid"]


def jpeg(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def small_on_black() -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.zeros((40, 30, 3), np.uint8)
    pixels[20:25, 10:15] = NOISE[:5, :5]
    return pixels


def test_good_cells_pass_with_their_facts(context: Context) -> None:
    result = judged(context)
    assert result.valid
    assert (result.images, result.accepted, result.rejected) == (len(CELLS), len(CELLS), 0)
    assert result.reasons == {}
    assert sum(result.by_class.values()) == len(CELLS)
    table = facts(context, result)
    assert list(table.columns) == FACTS
    assert list(table["key"]) == sorted(CELLS)
    assert ((table["cell_share"] > 0.3) & (table["cell_share"] < 1)).all()
    assert table["brightness"].between(60, 250).all()


WHOLE = png(NOISE)
# name -> reason, the image, and its near miss, which must pass.
BAD: dict[str, tuple[str, bytes, bytes]] = {
    "text": ("not an image", b"to do: buy stain", WHOLE),
    "empty": ("not an image", b"", WHOLE),
    "no_signature": ("not an image", WHOLE[1:], WHOLE),
    "gif": ("not an image", b"GIF89a" + bytes(100), jpeg(NOISE)),
    "half": ("truncated", WHOLE[: len(WHOLE) // 2], WHOLE),
    "one_bit": ("damaged image", WHOLE[:300] + bytes([WHOLE[300] ^ 4]) + WHOLE[301:], WHOLE),
    "low": ("too small", png(NOISE[:15]), png(NOISE[:16])),
    "narrow": ("too small", png(NOISE[:, :15]), png(NOISE[:, :16])),
    "wide": ("too large", png(np.tile(NOISE, (1, 7, 1))[:, :201]), png(np.tile(NOISE, (1, 7, 1))[:, :200])),
    "grey": ("wrong mode", png(Image.fromarray(NOISE).convert("L")), WHOLE),
    "transparent": ("alpha", png(Image.fromarray(NOISE).convert("RGBA")), WHOLE),
    "palette": ("wrong mode", png(Image.fromarray(NOISE).convert("P")), WHOLE),
    "black": ("no cell", png(np.zeros((40, 30, 3))), png(small_on_black())),
}


def test_a_bad_image_is_left_out_by_reason(context: Context, store: CountingStore) -> None:
    keys = {name: f"labeled/{POSITIVE}/C9P9thin_{name}.png" for name in BAD}
    store.objects |= {keys[name]: data for name, (_, data, _) in BAD.items()}
    context = with_settings(context, data={"max_pixels": 200, "max_aspect": 10})
    result = judged(context)
    assert findings(context, result, warnings=False) == {keys[name]: reason for name, (reason, _, _) in BAD.items()}
    assert Counter(reason for reason, _, _ in BAD.values()).items() <= result.reasons.items()
    assert (result.images, result.accepted, result.rejected) == (len(CELLS) + len(BAD), len(CELLS), len(BAD))
    assert all(finding.detail for finding in result.examples)
    assert {key: store.objects[key] for key in keys.values()} == {
        keys[name]: data for name, (_, data, _) in BAD.items()
    }


def test_its_near_miss_is_not(context: Context, store: CountingStore) -> None:
    near = {data: f"labeled/{POSITIVE}/C9P9thin_{name}.png" for name, (_, _, data) in BAD.items()}
    store.objects |= {key: data for data, key in near.items()}
    context = with_settings(context, data={"max_pixels": 200, "max_aspect": 10})
    result = judged(context)
    assert findings(context, result, warnings=False) == {}
    assert set(near.values()) <= set(facts(context, result)["key"])


def test_what_was_not_fetched_is_named_too(context: Context, store: CountingStore) -> None:
    bad = {
        f"labeled/{POSITIVE}/Thumbs.db": "junk file",
        f"labeled/{POSITIVE}/../evil.png": "odd key",
        "labeled/Other/C1P1thin.png": "unknown class",
        f"labeled/{POSITIVE}/C1P1thin_locked.png": "unreadable",
    }
    store.objects.update(dict.fromkeys(bad, b"x"))
    store.broken[f"labeled/{POSITIVE}/C1P1thin_locked.png"] = StoreUnreachable("access denied")
    result = judged(context)
    assert findings(context, result) == bad
    assert all(finding.detail for finding in result.examples)
    # A file manager's leftover is no image that was rejected.
    assert (result.images, result.rejected) == (len(CELLS) + 3, 3)


def test_doubles_in_one_class_leave_the_first(context: Context, store: CountingStore) -> None:
    original = next(key for key in sorted(CELLS) if POSITIVE in key)
    pull(context)
    with Image.open(io.BytesIO(CELLS[original])) as image:
        again = png(image, compress_level=9)
    assert again != CELLS[original]
    store.objects[f"labeled/{POSITIVE}/C1401P1362ThinA_same_bytes.png"] = CELLS[original]
    store.objects[f"labeled/{POSITIVE}/C1401P1362ThinA_same_pixels.png"] = again
    result = judged(context)
    assert findings(context, result) == {
        f"labeled/{POSITIVE}/C1401P1362ThinA_same_bytes.png": "duplicate",
        f"labeled/{POSITIVE}/C1401P1362ThinA_same_pixels.png": "duplicate",
    }
    # Though it sorts after them: what arrives later never takes a patient's cell away.
    assert original in set(facts(context, result)["key"])
    assert original in result.examples[0].detail


def test_cells_under_both_classes_are_all_left_out(context: Context, store: CountingStore) -> None:
    original = next(key for key in sorted(CELLS) if POSITIVE in key)
    doubles = {
        original,
        f"labeled/{POSITIVE}/C9P9thin_double.png",
        f"labeled/{NEGATIVE}/C9P9thin_other_class.png",
    }
    store.objects.update(dict.fromkeys(doubles, CELLS[original]))
    result = judged(context)
    assert findings(context, result) == dict.fromkeys(doubles, "both classes")
    assert result.accepted == len(CELLS) - 1


def test_cells_that_differ_in_one_pixel_are_two(context: Context, store: CountingStore) -> None:
    near = NOISE.copy()
    near[7, 7, 1] ^= 1
    store.objects |= {KEY: png(NOISE), KEY.replace("cell_1", "cell_2"): png(near)}
    # The same bytes in another shape are another image.
    store.objects[KEY.replace("cell_1", "cell_3")] = png(NOISE.reshape(30, 40, 3))
    assert judged(context).rejected == 0


def test_a_cell_without_a_patient_is_kept_and_told(context: Context, store: CountingStore) -> None:
    key = f"labeled/{NEGATIVE}/scan_0001.png"
    store.objects[key] = png(NOISE)
    result = judged(context)
    table = context.records.load_table(result.findings)
    # Noise that fills its picture; all other reasons are warnings as well.
    assert {"no patient"} < set(table["reason"])
    assert (set(table["key"]), set(table["severity"])) == ({key}, {"warn"})
    assert (result.without_patient, result.rejected, result.patients) == (1, 0, 12)
    assert key in set(facts(context, result)["key"])


def test_the_record_names_ten_of_a_reason_and_the_table_all(context: Context, store: CountingStore) -> None:
    bad = {f"labeled/{POSITIVE}/C9P9thin_{i:02}.png": b"x" for i in range(EXAMPLES + 3)}
    store.objects |= {**bad, f"labeled/{POSITIVE}/Thumbs.db": b"x"}
    result = judged(context)
    assert result.reasons == {"not an image": EXAMPLES + 3, "junk file": 1}
    assert len(result.examples) == EXAMPLES + 1
    assert len(findings(context, result)) == EXAMPLES + 4


def test_one_class_only_is_invalid_and_says_which_is_missing(home: Path) -> None:
    cells = {key: data for key, data in CELLS.items() if POSITIVE in key}
    context = context_over(CountingStore(cells), home)
    result = judged(context)
    assert not result.valid
    assert "Uninfected cells" in failed(result)
    assert "patients with Uninfected cells" in failed(result)
    check = next(check for check in result.checks if check.name == "Uninfected cells")
    assert (check.observed, check.expected) == ("0", "at least 2")


def test_nothing_usable_is_invalid_and_no_crash(home: Path) -> None:
    context = context_over(CountingStore({f"labeled/{label}/x.png": b"x" for label in CLASSES}), home)
    result = judged(context)
    assert not result.valid
    assert (result.images, result.accepted, result.rejected) == (2, 0, 2)
    context = context_over(CountingStore({f"labeled/{POSITIVE}/Thumbs.db": b"x"}), home / "other")
    result = judged(context)
    assert not result.valid
    assert (result.images, result.accepted) == (0, 0)


@pytest.mark.parametrize(
    ("rule", "check"),
    [
        ({"min_cells_per_class": 25}, "Parasitized cells"),
        ({"min_patients_per_class": 13}, "patients with Parasitized cells"),
        ({"max_class_ratio": 1.01}, "class ratio, larger over smaller"),
        ({"max_rejected_share": 0.01}, "share of rejected images"),
    ],
)
def test_a_batch_that_breaks_a_rule_is_invalid(
    rule: dict[str, Any], check: str, context: Context, store: CountingStore
) -> None:
    store.objects[KEY] = b"x"
    result = judged(with_settings(context, data=rule))
    assert not result.valid
    assert check in failed(result)


def test_a_batch_with_few_rejected_warns_only(context: Context, store: CountingStore) -> None:
    store.objects |= {f"labeled/{POSITIVE}/C9P9thin_{i}.png": b"x" for i in range(3)}
    result = judged(context)
    assert result.valid
    assert [check.name for check in result.checks if not check.passed] == ["share of rejected images is comfortable"]


def test_what_was_judged_is_not_looked_at_again(
    context: Context, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects[KEY] = b"x"
    snapshot = pull(context)
    first = validate(context, snapshot)
    monkeypatch.setattr("tasks.validate.measure_all", lambda *_: pytest.fail("measured again"))
    assert validate(context, snapshot) == first
    other = context_over(store, context.workspace.home / "elsewhere")
    assert validate(other, snapshot) == first


def test_other_rules_are_another_result(context: Context) -> None:
    snapshot = pull(context)
    assert validate(context, snapshot).id != validate(with_settings(context, data={"min_pixels": 17}), snapshot).id


def test_input_is_never_touched(context: Context, store: CountingStore) -> None:
    store.objects[KEY] = png(NOISE)[:100]
    before = {key: sha256(data) for key, data in store.objects.items()}
    judged(context)
    assert before.items() <= {key: sha256(data) for key, data in store.objects.items()}.items()
