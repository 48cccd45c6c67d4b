"""The model registry: MLflow, so that anyone can load ``models:/malaria-cell@champion`` with MLflow's own client.

Each version holds the one model file and where it came from (infra/registry/versions.py). The champion is the version
under the alias ``champion``; what it was when, and why, is the append-only history (tasks/champion/history.py), whose
entries are decided here: ``put_if_absent`` is the one operation of which exactly one of two at once can win.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from infra.environment import environment_kept
from infra.local.temporary import temporary_folder
from infra.registry.cleanup import abandoned_runs, nights_of, remove_page, remove_run, unfinished_nights
from infra.registry.mlflow_client import (
    call_mlflow,
    check_database,
    create_if_missing,
    flush_files,
    is_database,
    none_if_missing,
    silence_mlflow,
)
from infra.registry.nights import log_night
from infra.registry.versions import log_version, tags_of
from infra.settings.settings import Settings
from infra.store.keys import CHAMPION_ALIAS, MODEL_NAME
from validation.digest import sha256
from validation.errors import ModelFileInvalid, RetrainError, UsageError
from validation.records import Candidate, ChampionRef, Decision, Evaluation, Night
from validation.redaction import mask

T = TypeVar("T")

EXPERIMENT = "nightly"
# One run a night with its verdict; apart from the runs that versions come from.
VERDICTS = "verdicts"
# The run whose parameters are what ``put_if_absent`` wrote; the registered model's tag names it.
LEDGER = "champion history"
LEDGER_TAG = "history_run"
# MLflow cuts longer parameters off without a word.
LONGEST_TEXT = 6_000
_SELECTING = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


class Registry:
    """The registered versions of the malaria cell classifier.

    Every method raises RegistryUnreachable when MLflow does not answer or its database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        # SQLAlchemy means a driver by this that is not among our packages; psycopg2 is.
        self.uri = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", settings.registry.get_secret_value())
        self._store = settings.store
        silence_mlflow()
        # A server keeps files where it was told to (--artifacts-destination) and hands them on; a database cannot.
        self._artifacts = settings.registry_artifacts if is_database(self.uri) else None
        if self._artifacts and self._artifacts.startswith("s3:") and settings.store_endpoint:
            os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", settings.store_endpoint)
        self._client = self._call(self._open)

    def _open(self) -> Any:
        import mlflow

        check_database(self.uri)
        client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        # A first question now, so that a registry that is away is noticed before anything is trained.
        client.search_registered_models(max_results=1)
        return client

    def champion(self) -> ChampionRef | None:
        """Return the version under the alias, or None when there has never been one."""
        version = self._call(
            lambda: none_if_missing(lambda: self._client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS))
        )
        return None if version is None else _reference(version)

    def version(self, number: str) -> ChampionRef:
        """Return a registered version.

        Raises:
            UsageError: when there is none of that number.
        """
        found = self._call(lambda: none_if_missing(lambda: self._client.get_model_version(MODEL_NAME, number)))
        if found is None:
            raise UsageError(
                f"no version {number} of {MODEL_NAME} in {mask(self.uri)}", "`retrain history` shows who was champion"
            )
        return _reference(found)

    def decision_of(self, version: str) -> str | None:
        """Return the decision that a version was registered by."""
        tags = self._call(lambda: self._client.get_model_version(MODEL_NAME, version).tags)
        return str(tags["decision"]) if "decision" in tags else None

    def model_bytes(self, reference: ChampionRef) -> bytes:
        """Return a version's model file, downloaded anew, as registered.

        Raises:
            ModelFileInvalid: when its bytes are not those that were registered.
        """
        mlflow = self._selected()
        with temporary_folder("version") as folder:
            path = self._call(
                lambda: mlflow.artifacts.download_artifacts(
                    f"models:/{MODEL_NAME}/{reference.version}", dst_path=str(folder)
                )
            )
            files = list(Path(path).rglob("*.onnx"))
            data = files[0].read_bytes() if files else b""
        if sha256(data) != reference.model_sha256:
            raise ModelFileInvalid(
                f"version {reference.version} of {MODEL_NAME} holds a model file with SHA-256 {sha256(data)}, "
                f"registered was {reference.model_sha256}",
                "it was damaged or tampered with: roll back to another version (`retrain rollback --why ...`)",
            )
        return data

    def register(
        self, candidate: Candidate, model: bytes, decision: Decision, evaluation: Evaluation | None = None
    ) -> ChampionRef:
        """Register a candidate's model file and return its version; the champion stays who it is.

        The same decision registers once: a night that was killed here finds its version again.

        Raises:
            ModelFileInvalid: when ``model`` is not the file that the candidate's record names.
        """
        if sha256(model) != candidate.model_sha256:
            raise ModelFileInvalid(
                f"the model file {candidate.model_key} has SHA-256 {sha256(model)}, "
                f"its candidate's record says {candidate.model_sha256}",
                "it was damaged or tampered with: nothing was registered; retrain",
            )
        found = self._call(lambda: self._of_decision(decision.id))
        if found is None:
            found = self._call(lambda: self._new_version(candidate, model, decision, evaluation))
        return _reference(found)

    def set_champion(self, version: str) -> None:
        """Let the alias point to ``version``."""
        self._call(lambda: self._client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, version))

    def note_night(self, night: Night, page: bytes) -> None:
        """Show a night on MLflow's pages, once: its verdict as tags, its figures, its report ``page`` (HTML)."""
        self._call(lambda: log_night(self._client, self._experiment(VERDICTS), night, page))

    def version_sources(self) -> list[tuple[str, str]]:
        """Return candidate and decision of every registered version."""
        tags = (version.tags for version in self._call(self._versions))
        return [(tag.get("candidate", ""), tag.get("decision", "")) for tag in tags]

    def abandoned_runs(self) -> list[str]:
        """Return the runs of registrations and of nights that were killed; no version came from them."""

        def find() -> list[str]:
            model = none_if_missing(lambda: self._client.get_registered_model(MODEL_NAME))
            ledger = model.tags.get(LEDGER_TAG) if model else None
            return [
                *abandoned_runs(self._client, self._experiment(), self._versions(), ledger),
                *unfinished_nights(self._client, self._experiment(VERDICTS)),
            ]

        return self._call(find)

    def remove_run(self, run: str) -> None:
        """Delete a run that ``abandoned`` named, with its files."""
        self._call(lambda: remove_run(self._client, self.uri, run))

    def delete_report_page(self, decision: str) -> None:
        """Delete the report on a decision from MLflow's pages; the night's figures stay there."""

        def forget() -> None:
            for run in nights_of(self._client, self._experiment(VERDICTS), decision):
                remove_page(self._client, self.uri, run)

        self._call(forget)

    def put_if_absent(self, name: str, text: str) -> str:
        """Write ``text`` under ``name`` unless something stands there, and return what stands there afterwards.

        Exactly one of any number of writers at once wins, in whatever process or machine, and what it wrote stays:
        MLflow's parameters cannot be changed, which the primary key of their table (run, name) enforces.
        """
        if len(text) > LONGEST_TEXT:
            raise RetrainError(f"{name} would be {len(text):,} characters, {LONGEST_TEXT:,} fit", "give a shorter why")

        def write() -> str:
            from mlflow.exceptions import MlflowException

            run = self._ledger_run()
            try:
                self._client.log_param(run, name, text)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
            return str(self._client.get_run(run).data.params[name])

        return self._call(write)

    def entries_with_prefix(self, prefix: str) -> dict[str, str]:
        """Return all that ``put_if_absent`` wrote under names that begin with ``prefix``; the prefix is cut off."""

        def read() -> dict[str, str]:
            model = none_if_missing(lambda: self._client.get_registered_model(MODEL_NAME))
            if model is None or LEDGER_TAG not in model.tags:
                return {}
            params = self._client.get_run(model.tags[LEDGER_TAG]).data.params
            return {name.removeprefix(prefix): params[name] for name in sorted(params) if name.startswith(prefix)}

        return self._call(read)

    def _ledger_run(self) -> str:
        """Return the run that ``put_if_absent`` writes to, made with the registered model: both or neither."""
        model = none_if_missing(lambda: self._client.get_registered_model(MODEL_NAME))
        if model is None or LEDGER_TAG not in model.tags:
            run = self._client.create_run(self._experiment(), run_name=LEDGER).info.run_id
            self._client.set_terminated(run)
            if model is None and self._create_model(run):
                return str(run)
            # Somebody else was first and named their run; or the model is older than this tag.
            model = self._client.get_registered_model(MODEL_NAME)
            if LEDGER_TAG not in model.tags:
                self._client.set_registered_model_tag(MODEL_NAME, LEDGER_TAG, run)
                model = self._client.get_registered_model(MODEL_NAME)
        return str(model.tags[LEDGER_TAG])

    def _create_model(self, run: str) -> bool:
        return create_if_missing(
            lambda: self._client.create_registered_model(
                MODEL_NAME,
                tags={LEDGER_TAG: run},
                description="Malaria cell classifier: uint8 RGB cells in, probability of Parasitized out",
            )
        )

    def _versions(self) -> list[Any]:
        found = []
        token: str | None = None
        while token is None or token:
            page = self._client.search_model_versions(f"name='{MODEL_NAME}'", page_token=token)
            found += page
            token = page.token or ""
        return found

    def _of_decision(self, decision: str) -> Any | None:
        return next((version for version in self._versions() if version.tags.get("decision") == decision), None)

    def _new_version(
        self, candidate: Candidate, model: bytes, decision: Decision, evaluation: Evaluation | None
    ) -> Any:
        self._ledger_run()
        experiment = self._experiment()
        self._close_abandoned(experiment, decision.id)
        name = f"{candidate.spec.model}-{candidate.id[:8]}"
        mlflow = self._selected()
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags={"decision": decision.id}):
            logged = log_version(mlflow, model, candidate, decision, evaluation)
        flush_files(self._client, logged.model_id, self._artifacts)
        # Last, when the run has ended: a version is there with all that it carries, or not at all.
        return self._client.create_model_version(
            MODEL_NAME,
            source=logged.model_uri,
            run_id=logged.run_id,
            model_id=logged.model_id,
            tags=tags_of(candidate, decision, self._store),
            description=decision.sentence,
        )

    def _close_abandoned(self, experiment: str, decision: str) -> None:
        """Mark the runs of a registration that was killed: MLflow would show them as running, or as finished."""
        for run in self._client.search_runs([experiment], f"tags.decision = '{decision}'"):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _selected(self) -> Any:
        """Return MLflow set to this registry: parts of it know no other way to be told which one is meant."""
        import mlflow

        # MLflow tells it to all processes that are started from here on; what they are to use is not ours to say.
        with environment_kept(_SELECTING):
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
        return mlflow

    def _experiment(self, name: str = EXPERIMENT) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            create_if_missing(lambda: self._client.create_experiment(name, artifact_location=self._artifacts))
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _call(self, call: Callable[[], T]) -> T:
        return call_mlflow(self.uri, call)


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
