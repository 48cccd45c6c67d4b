"""The model card of a registered version: Markdown with the machine-readable head that Hugging Face defines. Pure.

The head's ``model-index`` has the figures of the evaluation (https://github.com/huggingface/hub-docs, modelcard.md).
"""

from __future__ import annotations

import math
from typing import Any

import yaml

from infra.store.keys import MODEL_NAME
from tasks.reporting.flow import intended_use, stated
from tasks.reporting.format import METRICS, number
from tasks.reporting.words.headline import SYNTHETIC
from validation.records import NEGATIVE, POSITIVE, Candidate, Decision, Evaluation, Interval


def model_card(
    candidate: Candidate, decision: Decision, evaluation: Evaluation | None, settings: dict[str, str]
) -> str:
    """Return the card of a candidate that a decision registers, by the flat ``settings`` in force."""
    known, missing = stated(settings)
    head = yaml.safe_dump(_head(candidate, decision, evaluation, known), sort_keys=False, allow_unicode=True)
    shape = f"uint8 [n, {candidate.side}, {candidate.side}, 3], RGB"
    lines = [
        f"# {MODEL_NAME}: {candidate.model}, {len(candidate.members)} members",
        *([f"**Trained on synthetic cells. {SYNTHETIC}**"] if decision.synthetic else []),
        "## Intended use and limits",
        intended_use(settings),
        "## Use",
        f"`models:/{MODEL_NAME}@champion`, or the ONNX file beside this card. In: `images`, {shape}. Out: "
        f"`probability`, that of {POSITIVE}, and each member's. Infected: from {candidate.threshold!r} on.",
        "## Performance",
        *_figures(evaluation),
        "## Cells",
        f"Snapshot {decision.snapshot}; trained on {candidate.train_patients:,} patients. Classes: {POSITIVE}, "
        f"{NEGATIVE}.",
        "## Stated by its owner",
        *(f"- {words}: {text}" for words, text in known.items()),
        *([f"Not stated: {', '.join(missing).lower()}."] if missing else []),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(lines) + "\n"


def _head(
    candidate: Candidate, decision: Decision, evaluation: Evaluation | None, known: dict[str, str]
) -> dict[str, Any]:
    licence = known.get("Licence")
    entry: dict[str, Any] = {"name": MODEL_NAME}
    if evaluation is not None:
        m = evaluation.challenger_metrics
        task = {"type": "image-classification", "name": "Malaria cells: infected or not"}
        cells = {
            "type": MODEL_NAME,
            "name": f"{m.cells} cells of {m.patients} patients that no judging member has seen",
            "split": "judging",
            "revision": decision.snapshot,
        }
        metrics = [_metric(name, interval) for name, interval in m.intervals().items() if interval is not None]
        entry["results"] = [{"task": task, "dataset": cells, "metrics": [one for one in metrics if one]}]
    return {
        # The Hub knows SPDX's identifiers alone; any other text is a name of its own.
        **({"license": "other", "license_name": licence} if licence else {"license": "unknown"}),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["malaria", "microscopy", "onnx", candidate.model, *(["synthetic"] if decision.synthetic else [])],
        "model-index": [entry],
    }


def _metric(name: str, interval: Interval) -> dict[str, Any]:
    """Return one figure; nothing for one that is not a number, which YAML's other readers refuse."""
    ends = {"low": interval.low, "high": interval.high, "level": interval.level}
    if not all(map(math.isfinite, (interval.value, *ends.values()))):
        return {}
    kind = {"auc": "roc_auc", "sensitivity": "recall"}.get(name, name)
    return {"type": kind, "name": METRICS[name], "value": interval.value, "args": ends}


def _figures(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["It was not evaluated: a person promoted it."]
    m = evaluation.challenger_metrics
    rows = [
        f"| {METRICS[name]} | {number(i.value)} | {number(i.low)} to {number(i.high)} |"
        for name, i in m.intervals().items()
        if i is not None
    ]
    return [
        f"On {m.cells:,} cells of {m.patients:,} patients, each patient judged by the member that has not seen it; 95% "
        "intervals with patients as the unit. Rates are of single cells, not of patients.",
        "\n".join(["| metric | value | interval |", "|---|---|---|", *rows]),
    ]
