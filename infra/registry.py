"""The model registry: MLflow, so that anyone can load ``models:/malaria-cell@champion`` with MLflow's own client.

Each version holds the one model file and, as tags, where it came from. The champion is the version under the alias
``champion``; what it was when, and why, is the append-only history in the store (tasks/promote.py).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infra.keys import CHAMPION_ALIAS, MODEL_NAME
from infra.scoring import INPUT, OUTPUT
from infra.settings import Settings, mask
from validation.digest import sha256
from validation.errors import ModelFileInvalid, RegistryUnreachable
from validation.records import Candidate, ChampionRef, Decision

log = logging.getLogger(__name__)
T = TypeVar("T")

EXPERIMENT = "nightly"


class Registry:
    """The registered versions of the malaria cell classifier.

    Every method raises RegistryUnreachable when MLflow does not answer or its database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.uri = settings.registry
        self._artifacts = settings.registry_artifacts if self.uri.startswith("sqlite:") else None
        _quiet()
        self._client = self._call(self._open)

    def _open(self) -> Any:
        import mlflow

        _knock(self.uri)
        client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        # A first question now, so that a registry that is away is noticed before anything is trained.
        client.search_registered_models(max_results=1)
        return client

    def champion(self) -> ChampionRef | None:
        """Return the version under the alias, or None when there has never been one."""

        def ask() -> Any:
            from mlflow.exceptions import MlflowException

            try:
                return self._client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

        version = self._call(ask)
        return None if version is None else _reference(version)

    def model_bytes(self, reference: ChampionRef) -> bytes:
        """Return a version's model file, as registered.

        Raises:
            ModelFileInvalid: when its bytes are not those that were registered.
        """
        mlflow = self._selected()
        with tempfile.TemporaryDirectory() as folder:
            path = self._call(
                lambda: mlflow.artifacts.download_artifacts(
                    f"models:/{MODEL_NAME}/{reference.version}", dst_path=folder
                )
            )
            files = list(Path(path).rglob("*.onnx"))
            data = files[0].read_bytes() if files else b""
        if sha256(data) != reference.model_sha256:
            raise ModelFileInvalid(
                f"version {reference.version} of {MODEL_NAME} holds a model file with SHA-256 {sha256(data)}, "
                f"registered was {reference.model_sha256}",
                "it was damaged or tampered with: roll back to another version",
            )
        return data

    def register(self, candidate: Candidate, model: bytes, decision: Decision) -> ChampionRef:
        """Register a candidate's model file and return its version; the champion stays who it is.

        The same decision registers once: a night that was killed here finds its version again.
        """
        found = self._call(lambda: self._of_decision(decision.id))
        return _reference(
            found if found is not None else self._call(lambda: self._new_version(candidate, model, decision))
        )

    def set_champion(self, version: str) -> None:
        """Let the alias point to ``version``."""
        self._call(lambda: self._client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, version))

    def _of_decision(self, decision: str) -> Any | None:
        versions = self._client.search_model_versions(f"name='{MODEL_NAME}'")
        return next((version for version in versions if version.tags.get("decision") == decision), None)

    def _new_version(self, candidate: Candidate, model: bytes, decision: Decision) -> Any:
        import onnx

        mlflow = self._selected()
        with mlflow.start_run(experiment_id=self._experiment(), run_name=f"{candidate.spec.model}-{candidate.id[:8]}"):
            mlflow.log_params({"model": candidate.spec.model, "side": candidate.spec.side, "seed": candidate.spec.seed})
            mlflow.log_params({f"recipe.{name}": value for name, value in candidate.spec.recipe.items()})
            mlflow.log_metrics(_numbers(candidate))
            for epoch in candidate.history:
                mlflow.log_metrics({"train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss}, step=epoch.epoch)
            logged = mlflow.onnx.log_model(
                onnx.load_from_string(model),
                name="model",
                signature=_signature(candidate.spec.side),
                # One file, as the contract says; and stated, since MLflow would load the model to guess them.
                save_as_external_data=False,
                pip_requirements=[f"onnxruntime=={_installed('onnxruntime')}", f"numpy=={_installed('numpy')}"],
            )
        if self._client.search_registered_models(f"name='{MODEL_NAME}'") == []:
            self._client.create_registered_model(
                MODEL_NAME, description="Malaria cell classifier: uint8 RGB cells in, probability of Parasitized out"
            )
        return self._client.create_model_version(
            MODEL_NAME,
            source=logged.model_uri,
            run_id=logged.run_id,
            model_id=logged.model_id,
            tags=_tags(candidate, decision),
            description=decision.sentence,
        )

    def _selected(self) -> Any:
        """Return MLflow set to this registry: parts of it know no other way to be told which one is meant."""
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return mlflow

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=self._artifacts))

    def _call(self, call: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return call()
        except (MlflowException, SQLAlchemyError, OSError, ModuleNotFoundError) as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RegistryUnreachable(
                f"the registry {mask(self.uri)} cannot be used: {mask(first_line)}",
                "check RETRAIN_REGISTRY, and that its server or its folder can be reached and written",
            ) from error


def _knock(uri: str) -> None:
    """Ask a database once for its tables. MLflow asks ten times in 100 s before it believes that one cannot be used."""
    import sqlalchemy
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        return  # a server, which MLflow's own client asks
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()


def _reference(version: Any) -> ChampionRef:
    tags = version.tags
    return ChampionRef(
        version=str(version.version),
        candidate=tags["candidate"],
        model=tags["model"],
        model_sha256=tags["model_sha256"],
        threshold=float(tags["threshold"]),
        since=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )


def _tags(candidate: Candidate, decision: Decision) -> dict[str, str]:
    return {
        "candidate": candidate.id,
        "decision": decision.id,
        "snapshot": decision.snapshot,
        "model": candidate.spec.model,
        "model_sha256": candidate.model_sha256,
        # repr gives back the very same float.
        "threshold": repr(candidate.threshold),
        "train_patients_digest": candidate.train_patients_digest,
        "synthetic": str(decision.synthetic).lower(),
        **{f"version.{name}": version for name, version in candidate.versions.items()},
    }


def _numbers(candidate: Candidate) -> dict[str, float]:
    values = candidate.validation.intervals()
    return {f"validation.{name}": interval.value for name, interval in values.items() if interval is not None}


def _signature(side: int) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side, 3), name=INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,), name=OUTPUT)]),
    )


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _quiet() -> None:
    """Keep MLflow from telling of its database migrations, from calling home and from retrying for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
