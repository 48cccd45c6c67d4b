"""The model card: what a program reads in its head are the figures of the evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from infra.settings.settings import Settings
from tasks.reporting.model_card import model_card
from tests.tasks.reporting.samples import full_inputs, one_class

pytestmark = pytest.mark.thorough

STATED = {"about.owner": "The lab: \"A\" & 'B' # --- ü", "about.licence": "CC BY 4.0", "about.sites": "One clinic."}


def card(settings: dict[str, str], **changed: Any) -> str:
    made = full_inputs(**changed)
    assert made.challenger is not None
    return model_card(made.challenger, made.decision, made.evaluation, settings)


def parsed(text: str) -> dict[str, Any]:
    """The card's head, as Hugging Face's library reads it where it is installed."""
    _, first, _ = text.split("---\n", 2)
    head: dict[str, Any] = yaml.safe_load(first)
    try:
        from huggingface_hub import ModelCard  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return head
    read = ModelCard(text).data
    assert [result.metric_value for result in read.eval_results]
    return head


def test_the_figures_are_those_of_the_evaluation() -> None:
    text = card(STATED)
    head = parsed(text)
    [entry] = head["model-index"]
    [result] = entry["results"]
    evaluation = full_inputs().evaluation
    assert evaluation is not None
    judged = evaluation.challenger_metrics
    found = {
        metric["name"]: (metric["value"], metric["args"]["low"], metric["args"]["high"]) for metric in result["metrics"]
    }
    assert found == {
        name: (interval.value, interval.low, interval.high)
        for name, interval in (
            ("Accuracy", judged.accuracy), ("Balanced accuracy", judged.balanced_accuracy), ("AUC", judged.auc),
            ("Sensitivity", judged.sensitivity), ("Specificity", judged.specificity),
        )
        if interval is not None
    }  # fmt: skip
    assert len(found) == 5
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"]["revision"] == "1" * 64
    assert (head["license"], head["license_name"]) == ("other", "CC BY 4.0")
    assert f"{judged.cells:,} cells of {judged.patients} patients" in text
    assert f"- Owner: {STATED['about.owner']}" in text
    assert "Not stated: labelled by, how to cite." in text


def test_what_is_not_stated_or_not_defined_is_said(tmp_path: Any) -> None:
    settings = Settings(home=tmp_path).printable()
    head = parsed(card(settings, synthetic=True))
    assert head["license"] == "unknown"
    assert "synthetic" in head["tags"]
    made = one_class()
    assert made.challenger is not None
    undefined = model_card(made.challenger, made.decision, made.evaluation, settings)
    assert [m["name"] for m in parsed(undefined)["model-index"][0]["results"][0]["metrics"]] == [
        "Accuracy",
        "Specificity",
    ]
    text = model_card(made.challenger, made.decision, None, settings)
    assert "results" not in parsed(text)["model-index"][0]
    assert "It was not evaluated" in text
    assert "Not stated: labelled by, sites, owner, licence, how to cite." in text
