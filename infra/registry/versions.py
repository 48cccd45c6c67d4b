"""What a registered version contains besides its model file: its origin, its evidence, and its signature.

Used by ``infra.registry.registry`` alone.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import numpy as np

from infra.provenance import code_revision
from infra.registry.trainings import curves, started
from infra.report_server import page_address
from infra.scoring.model_file import INPUT, MEMBERS, OUTPUT
from infra.settings.groups import SiteSettings
from infra.store.keys import report_key
from validation.records import Candidate, Decision, Evaluation, Metrics
from validation.redaction import mask

EVIDENCE = "evidence"
CARD = "README.md"


def log_version(mlflow: Any, model: bytes, candidate: Candidate, decision: Decision, judged: Evaluation | None) -> Any:
    """Log the model file and its evidence in MLflow's active run; return MLflow's ``ModelInfo``."""
    import onnx

    # In one call: each call is a commit of the database.
    mlflow.MlflowClient().log_batch(
        mlflow.active_run().info.run_id, metrics=_metrics(candidate, judged), params=_params(candidate)
    )
    for name, record in {"candidate": candidate, "decision": decision, "evaluation": judged}.items():
        if record is not None:
            mlflow.log_text(record.model_dump_json(indent=2), f"{EVIDENCE}/{name}.json")
    return mlflow.onnx.log_model(
        onnx.load_from_string(model),
        name=f"{candidate.model}-{decision.decided_at:%Y-%m-%d}",
        signature=_signature(candidate.side, len(candidate.members)),
        input_example=_example(candidate.side),
        # As in infra/scoring: MLflow's default, a GPU where there is one, gives other last bits.
        onnx_execution_providers=["CPUExecutionProvider"],
        # One file, as the contract says. Requirements are given, since MLflow would load the model to guess them.
        save_as_external_data=False,
        pip_requirements=[f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")],
    )


def with_link(sentence: str, decision: str, site: SiteSettings) -> str:
    """Return a sentence with a link to the report on its decision, in Markdown, as MLflow's pages show notes."""
    address = page_address(site, report_key(decision))
    return f"{sentence}\n\n[Report]({address})" if address else sentence


def tags_of(candidate: Candidate, decision: Decision, store: str) -> dict[str, str]:
    """Return a version's tags, from which its origin can be followed."""
    revision = code_revision()
    return {
        "candidate": candidate.id,
        "decision": decision.id,
        "snapshot": decision.snapshot,
        "evaluation": decision.evaluation or "none",
        "model": candidate.model,
        "members": ",".join(member.id for member in candidate.members),
        "model_sha256": candidate.model_sha256,
        # repr is exact.
        "threshold": repr(candidate.threshold),
        "train_patients_digest": candidate.train_patients_digest,
        "train_patients": str(candidate.train_patients),
        "synthetic": str(decision.synthetic).lower(),
        "report": f"{mask(store).rstrip('/')}/{report_key(decision.id)}",
        "code_revision": revision.commit,
        "code_changed": revision.dirty,
        **{f"version.{name}": version(name) for name in ("mlflow", "numpy", "onnxruntime")},
        **{f"version.{name}": number for name, number in candidate.members[0].versions.items()},
    }


def _params(candidate: Candidate) -> list[Any]:
    from mlflow.entities import Param

    spec = candidate.members[0].spec
    values = {"model": spec.model, "side": spec.side, "seed": spec.seed, "members": len(candidate.members)}
    values |= {f"recipe.{name}": value for name, value in spec.recipe.items()}
    return [Param(name, str(value)) for name, value in values.items()]


def _metrics(candidate: Candidate, judged: Evaluation | None) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1_000)
    values = _numbers("tuning", candidate.tuning)
    if judged is not None:
        values |= _numbers("judged", judged.challenger_metrics)
    epochs = [
        Metric(f"member{member.spec.member + 1}.{point.key}", point.value, point.timestamp, point.step)
        for member in candidate.members
        for point in curves(member.history, started(member), ("train_loss", "valid_loss"))
    ]
    return [Metric(name, value, now, 0) for name, value in values.items()] + epochs


def _numbers(of: str, metrics: Metrics) -> dict[str, float]:
    return {f"{of}.{name}": interval.value for name, interval in metrics.intervals().items() if interval is not None}


def _signature(side: int, members: int) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    outputs = [TensorSpec(np.dtype(np.float32), (-1,), name=OUTPUT)]
    outputs += [TensorSpec(np.dtype(np.float32), (-1, members), name=MEMBERS)]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side, 3), name=INPUT)]), outputs=Schema(outputs)
    )


def _example(side: int) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return an artificial input, one image [1, side, side, 3]: no patient's cell goes into the registry."""
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    return {INPUT: np.broadcast_to(ramp[None, :, None, None], (1, side, side, 3)).copy()}
