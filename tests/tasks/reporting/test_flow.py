"""What became of the images, and what is stated of the model: as far as the night came, and no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from tasks.reporting.flow import steps
from tasks.reporting.page import render_report
from tests.tasks.reporting.samples import first_champion, full_inputs, invalid, not_looked
from tests.tasks.reporting.test_page import HOSTILE, text_of
from validation.records import Finding, Verdict

pytestmark = pytest.mark.thorough


def test_every_image_is_accounted_for_from_found_to_called() -> None:
    made = full_inputs()
    assert made.split is not None
    flow = steps(replace(made, split=made.split.model_copy(update={"crossed": 2})))
    assert [(step.amount, step.what) for step in flow] == [
        ("6,890", "labelled images found"),
        ("6,887", "accepted, of 139 patients"),
        ("1,012", "trained on, 1,000 of them of 20 patients"),
        ("1,000", "judged, 503 Parasitized, 497 Uninfected, of 20 patients"),
    ]
    assert [step.leaves for step in flow] == [
        ("3 set aside: too small 2, truncated 1",),
        ("2 filed under another patient before: left out",),
        ("12 images with no patient: trained on, never judged",),
        (),
    ]
    assert flow[-1].more == "The challenger called 507 infected (27 wrongly) and 493 uninfected (23 wrongly)."


def test_sites_are_counted_by_what_patients_names_say_or_are_said_not_to_be() -> None:
    made = full_inputs()
    assert made.predictions is not None
    assert "Sites are not counted" in text_of(render_report(made))
    patients = made.predictions["patient"]
    sites = ["lab" if index % 3 else HOSTILE[:8] for index in range(len(patients))]
    keys = [f"labeled/Parasitized/{site}-{index}.png" for index, site in enumerate(sites)]
    accepted = [("lab-1", "A"), ("lab-2", "A"), ("lab-3", "B"), ("ward-1", "B"), ("C1", "C"), ("ward-2", "")]
    counted = replace(
        made,
        night=made.night.model_copy(update={"settings": {"about.site_pattern": r"([^-]+)-"}}),
        predictions=made.predictions.assign(key=keys),
        accepted=pd.DataFrame([(f"labeled/Uninfected/x/{name}", patient) for name, patient in accepted]).set_axis(
            ["key", "patient"], axis=1
        ),
    )
    flow = steps(counted)
    assert flow[1].more == "2 sites, patients: lab 2, ward 1. 1 patient of no named site."
    assert flow[-1].more.startswith(f"2 sites, patients: {HOSTILE[:8]} 20, lab 20. ")
    page = render_report(counted)
    assert "Sites are not counted" not in page
    assert "patients: &lt;script&gt; 20, lab 20" in page


def test_of_many_sites_the_largest_are_named() -> None:
    made = full_inputs()
    settings = {"about.site_pattern": r"(\w+)-"}
    names = [*(f"s{index:03d}-1" for index in range(50)), "s049-2"]
    accepted = pd.DataFrame({"key": names, "patient": names})
    flow = steps(replace(made, night=made.night.model_copy(update={"settings": settings}), accepted=accepted))
    assert flow[1].more.startswith("50 sites, patients: s049 2, s000 1, ")
    assert flow[1].more.endswith("s018 1, 30 more.")


def test_a_warning_sets_no_image_aside_and_several_reasons_are_said() -> None:
    made = full_inputs()
    key = "labeled/Parasitized/a.png"
    examples = (
        Finding(reason="too small", key=key, detail=""),
        Finding(reason="blank", key=key, detail=""),
        Finding(reason="near duplicate", key=key, detail="", severity="warn"),
    )
    changed = {"reasons": {"too small": 2, "blank": 2, "near duplicate": 9}, "examples": examples}
    aside = steps(replace(made, validation=made.validation.model_copy(update=changed)))[0].leaves
    assert aside == ("3 set aside (some for several reasons): too small 2, blank 2",)


@pytest.mark.parametrize(
    ("inputs", "last"),
    [
        (not_looked(Verdict.KEPT), "None judged"),
        (invalid(), "None trained on"),
        (first_champion(), "1,000 judged, 503 Parasitized, 497 Uninfected, of 20 patients"),
    ],
)
def test_the_flow_ends_where_the_night_did(inputs: Any, last: str) -> None:
    step = steps(inputs)[-1]
    assert f"{step.amount} {step.what}" == last


def test_what_the_settings_state_is_on_the_page_and_the_rest_is_named() -> None:
    made = full_inputs()
    stated = {"about.owner": f"The lab {HOSTILE}", "about.intended_use": "For teaching", "about.citation": "Doe 2026"}
    page = render_report(replace(made, night=made.night.model_copy(update={"settings": stated})))
    text = text_of(page)
    assert "Owner The lab" in text
    assert "How to cite Doe 2026" in text
    assert "Not stated (settings about): labelled by, sites, licence." in text
    assert "For teaching. Not a medical device. It does not decide whether a patient has malaria." in text
    assert 'href="planned-changes.html"' in page
    assert "Not stated (settings about): labelled by, sites, owner, licence, how to cite." in text_of(
        render_report(made)
    )
