"""Ten thousand harmed images: no crash, no hang, and every one has its facts or a reason that we know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from infra.local.files import Workspace
from tasks.cells.measuring import measure_all
from tests.builders import CountingStore, context_over
from tests.mutations import mutated
from validation.digest import sha256
from validation.images.facts import FACT_NAMES, ImageFacts, judge_image, learn_bounds
from validation.images.limits import REFUSALS

pytestmark = pytest.mark.thorough

COUNT = 10_000


def test_every_harmed_image_is_accounted_for(home: Path) -> None:
    images = [data for _, data in mutated(COUNT, seed=20261122)]
    workspace = Workspace(home)
    for data in images:
        workspace.write_object(data)
    objects = {f"labeled/Parasitized/{number}.png": data for number, data in enumerate(images)}
    context = context_over(CountingStore(objects), home)
    table, findings = measure_all(
        context, pd.DataFrame([(key, sha256(data)) for key, data in objects.items()], columns=["key", "sha256"])
    )
    assert sorted([*table["key"], *(finding.key for finding in findings)]) == sorted(objects)
    reasons = Counter(finding.reason for finding in findings)
    assert set(reasons) <= set(REFUSALS)
    # The mutations reach what they are meant to reach, and some images survive them.
    assert set(reasons) >= {
        "not an image",
        "truncated",
        "damaged image",
        "wrong format",
        "wrong mode",
        "alpha",
        "16-bit",
    }
    assert COUNT * 0.02 < len(table) < COUNT * 0.5
    bounds = learn_bounds(table)
    for row in table[list(FACT_NAMES)].itertuples(index=False, name=None):
        assert all(problem.detail for problem in judge_image(ImageFacts(*row), context.settings.data, bounds))
