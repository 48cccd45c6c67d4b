"""The model registry: MLflow, so that anyone can load ``models:/malaria-cell@champion`` with MLflow's own client.

Each version contains its one model file and its origin (infra/registry/versions.py). The champion is the version with
the alias ``champion``. Past champions are in an append-only history (tasks/champion/history.py), which rests on
``put_if_absent``: of any number of concurrent calls exactly one wins.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from infra.environment import environment_kept
from infra.local.temporary import temporary_folder
from infra.registry.cleanup import abandoned_runs, nights_of, remove_page, remove_run, unfinished_nights
from infra.registry.mlflow_client import (
    all_pages,
    call_mlflow,
    check_database,
    create_if_missing,
    flush_files,
    follow_moved_files,
    is_database,
    none_if_missing,
    silence_mlflow,
)
from infra.registry.nights import field_tags, log_night
from infra.registry.trainings import NO_DECISION, Tried, log_trainings
from infra.registry.versions import CARD, EVIDENCE, log_version, tags_of, with_link
from infra.settings.settings import Settings
from infra.store.keys import CHALLENGER_ALIAS, CHAMPION_ALIAS, MODEL_NAME, OURS
from validation.digest import sha256
from validation.errors import ChampionUnusable, ModelFileInvalid, RetrainError, UsageError
from validation.records import Candidate, ChampionRef, Decision, Evaluation, Night
from validation.redaction import mask

T = TypeVar("T")

log = logging.getLogger(__name__)

EXPERIMENT = "nightly"
# One run per night with its verdict; separate from the runs that versions come from.
VERDICTS = "verdicts"
# A run per training, below one per night, for a person to compare.
TRAININGS = "trainings"
# MLflow's page opens an experiment of this kind as model training; without a kind it guesses, or asks.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
# The run whose parameters ``put_if_absent`` writes; a tag of the registered model names it.
LEDGER = "champion history"
LEDGER_TAG = "history_run"
# MLflow silently truncates longer parameters.
LONGEST_TEXT = 6_000
DELETED, ALL_RUNS = "deleted", 3  # of mlflow.entities: LifecycleStage.DELETED, ViewType.ALL
_SELECTING = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


class Registry:
    """The registered versions of the malaria cell classifier.

    Every method raises RegistryUnreachable when MLflow does not answer or its database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        # SQLAlchemy would load another driver than psycopg2, which is the installed one.
        self.uri = re.sub("^postgres(ql)?://", "postgresql+psycopg2://", settings.registry.get_secret_value())
        self._store, self._site = settings.store, settings.site
        silence_mlflow()
        # A server has its own place for files (--artifacts-destination); a database has none.
        self._artifacts = settings.registry_artifacts if is_database(self.uri) else None
        if self._artifacts and self._artifacts.startswith("s3:") and settings.store_endpoint:
            os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", settings.store_endpoint)
        self._client = self._call(self._open)

    def _open(self) -> Any:
        import mlflow

        check_database(self.uri)
        client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        # A first request, so that an unreachable registry is noticed before anything is trained.
        client.search_registered_models(max_results=1)
        if self._artifacts and self._artifacts.startswith("file:"):
            follow_moved_files(self.uri, EXPERIMENT, self._artifacts)
        return client

    def champion(self) -> ChampionRef | None:
        """Return the version with the alias, or None when there has never been one."""
        version = self._find(lambda: self._client.get_model_version_by_alias(MODEL_NAME, CHAMPION_ALIAS))
        return None if version is None else _reference(version)

    def version(self, number: str) -> ChampionRef:
        """Return a registered version.

        Raises:
            UsageError: when there is none with that number.
        """
        version = self._find(lambda: self._client.get_model_version(MODEL_NAME, number))
        if version is None:
            raise UsageError(
                f"no version {number} of {MODEL_NAME} in {mask(self.uri)}", "`retrain history` lists the champions"
            )
        return _reference(version)

    def version_numbers(self) -> list[str]:
        """Return the numbers of all registered versions, oldest first."""
        return sorted((str(version.version) for version in self._call(self._versions)), key=int)

    def write_tags(self, reference: ChampionRef) -> None:
        """Write the tags of a version again that were removed or changed by hand."""

        def write() -> None:
            for name in ("candidate", "model", "model_sha256"):
                self._client.set_model_version_tag(MODEL_NAME, reference.version, name, getattr(reference, name))
            self._client.set_model_version_tag(MODEL_NAME, reference.version, "threshold", repr(reference.threshold))
            self._client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, reference.version)

        self._call(write)

    def decision_of(self, version: str) -> str | None:
        """Return the decision that registered a version."""
        tags = self._call(lambda: self._client.get_model_version(MODEL_NAME, version).tags)
        return str(tags["decision"]) if "decision" in tags else None

    def model_bytes(self, reference: ChampionRef) -> bytes:
        """Download a version's model file.

        Raises:
            ModelFileInvalid: when its bytes are not those that were registered.
        """
        download, uri = self._selected().artifacts.download_artifacts, f"models:/{MODEL_NAME}/{reference.version}"
        with temporary_folder("version") as folder:
            path = self._call(lambda: download(uri, dst_path=str(folder)))
            files = list(Path(path).rglob("*.onnx"))
            if not files:
                place = self._call(lambda: self._client.get_model_version_download_uri(MODEL_NAME, reference.version))
                raise ModelFileInvalid(
                    f"nothing lies where MLflow has the file of version {reference.version} of {MODEL_NAME}: {place}",
                    "was the folder moved, or a part of it deleted? put it back, or set RETRAIN_REGISTRY_ARTIFACTS to "
                    "where it is; or roll back to another version (`retrain rollback --why ...`)",
                )
            data = files[0].read_bytes()
        if sha256(data) != reference.model_sha256:
            raise ModelFileInvalid(
                f"version {reference.version} of {MODEL_NAME} has a model file with SHA-256 {sha256(data)}, "
                f"registered was {reference.model_sha256}",
                "it was damaged or tampered with: roll back to another version (`retrain rollback --why ...`)",
            )
        return data

    def evidence(self, version: str, name: str) -> str | None:
        """Return the copy of a record that a version was registered with (``evaluation``); None where it is gone."""

        def read() -> str | None:
            from mlflow.exceptions import MlflowException

            with temporary_folder("evidence") as folder, suppress(MlflowException, OSError):
                run = self._client.get_model_version(MODEL_NAME, version).run_id
                path = self._client.download_artifacts(run, f"{EVIDENCE}/{name}.json", str(folder))
                return Path(path).read_text()
            return None

        return self._call(read)

    def register(
        self,
        candidate: Candidate,
        model: bytes,
        decision: Decision,
        evaluation: Evaluation | None = None,
        card: str = "",
    ) -> ChampionRef:
        """Register a candidate's model file, with its ``card`` beside it, and return its version.

        The champion is not changed.

        A decision registers once: a night that was killed here finds its version again.

        Raises:
            ModelFileInvalid: when ``model`` is not the file that the candidate's record names.
        """
        if sha256(model) != candidate.model_sha256:
            raise ModelFileInvalid(
                f"the model file {candidate.model_key} has SHA-256 {sha256(model)}, "
                f"its candidate's record says {candidate.model_sha256}",
                "it was damaged or tampered with: nothing was registered; retrain",
            )
        versions = self._call(self._versions)
        version = next((version for version in versions if version.tags.get("decision") == decision.id), None)
        if version is None:
            version = made = self._call(lambda: self._new_version(candidate, model, decision, evaluation, card))
            # By itself: repeated after a passing failure, the call above would make another version.
            self._call(lambda: self._client.set_registered_model_alias(MODEL_NAME, CHALLENGER_ALIAS, str(made.version)))
        return _reference(version)

    def skip_version(self, number: int) -> None:
        """Use up the number of a version that cannot be had again: no other gets it."""

        def skip() -> None:
            run = self._ledger_run()
            version = self._client.create_model_version(MODEL_NAME, source=f"runs:/{run}/{number}", run_id=run)
            self._client.delete_model_version(MODEL_NAME, version.version)

        self._call(skip)

    def set_champion(self, version: str) -> None:
        """Point the alias to ``version``, which is no challenger any more."""

        def move() -> None:
            self._client.set_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS, version)
            aliases = self._client.get_registered_model(MODEL_NAME).aliases
            if str(aliases.get(CHALLENGER_ALIAS)) == version:
                self._client.delete_registered_model_alias(MODEL_NAME, CHALLENGER_ALIAS)

        self._call(move)

    def note_night(self, night: Night, page: bytes) -> None:
        """Log a night in MLflow, once: its verdict as tags, its metrics, its report ``page`` (HTML).

        What was promised of the champion and found since is in the tags of its version, and in the night's metrics.
        """
        self._call(lambda: log_night(self._client, self._experiment(VERDICTS), night, page, self._site))
        if night.field is not None:
            version, tags = night.field.version, field_tags(night.field)
            known = self._call(lambda: self._client.get_model_version(MODEL_NAME, version).tags)
            for name, value in tags.items():
                if known.get(name) != value:
                    self._call(partial(self._client.set_model_version_tag, MODEL_NAME, version, name, value))

    def note_trainings(self, night: Night, candidates: Sequence[Candidate], tried: Tried | None = None) -> None:
        """Log a night's trainings in MLflow, once: a run for each member, below one for the night.

        ``tried`` is what it trained besides: members of no candidate, and what failed.
        """
        experiment, tried = self._call(lambda: self._experiment(TRAININGS)), tried or Tried()
        self._call(lambda: log_trainings(self._client, experiment, night, candidates, tried, self._store))

    def version_sources(self) -> list[tuple[str, str]]:
        """Return candidate and decision of every registered version."""
        tags = (version.tags for version in self._call(self._versions))
        return [(tag.get("candidate", ""), tag.get("decision", "")) for tag in tags]

    def abandoned_runs(self) -> list[str]:
        """Return the runs of registrations and of nights that were killed, or came to no decision."""

        def find() -> list[str]:
            ledger = self._existing_ledger()
            keep = ledger.info.run_id if ledger else None
            return [
                *abandoned_runs(self._client, self._experiment(), self._versions(), keep),
                *unfinished_nights(self._client, self._experiment(VERDICTS)),
                *unfinished_nights(self._client, self._experiment(TRAININGS)),
                *nights_of(self._client, self._experiment(TRAININGS), NO_DECISION),
            ]

        return self._call(find)

    def remove_run(self, run: str) -> None:
        """Delete a run that ``abandoned_runs`` named, with its files."""
        self._call(lambda: remove_run(self._client, self.uri, run))

    def delete_report_page(self, decision: str) -> None:
        """Delete the report on a decision from MLflow, and the trainings that led to it; the night's metrics stay."""

        def delete() -> None:
            for run in nights_of(self._client, self._experiment(VERDICTS), decision):
                remove_page(self._client, self.uri, run)
            for run in nights_of(self._client, self._experiment(TRAININGS), decision):
                remove_run(self._client, self.uri, run)

        self._call(delete)

    def put_if_absent(self, name: str, text: str) -> str:
        """Write ``text`` under ``name`` unless that is taken, and return the text that is stored there afterwards.

        Exactly one of any number of concurrent writers wins, on any machine, and its text is never replaced: MLflow's
        parameters are immutable, which the primary key of their table (run, name) enforces.
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
        """Return the texts that ``put_if_absent`` stored under names with ``prefix``, by the rest of the name."""

        def read() -> dict[str, str]:
            ledger = self._existing_ledger()
            params = ledger.data.params if ledger else {}
            return {name.removeprefix(prefix): params[name] for name in sorted(params) if name.startswith(prefix)}

        return self._call(read)

    def _existing_ledger(self) -> Any | None:
        """Return the run that ``put_if_absent`` writes to; restored if it was deleted, found if its tag was."""
        model = none_if_missing(lambda: self._client.get_registered_model(MODEL_NAME))
        if model is None:
            self._refuse_renamed()
        run = model.tags.get(LEDGER_TAG) if model else None
        if run is None and (run := self._lost_ledger()) is not None and model is not None:
            log.warning("the tag %s of %s was gone: it is set again", LEDGER_TAG, MODEL_NAME)
            self._client.set_registered_model_tag(MODEL_NAME, LEDGER_TAG, run)
        return None if run is None else self._restored(run)

    def _refuse_renamed(self) -> None:
        for model in all_pages(self._client.search_registered_models):
            # Another machine's first promotion may have created the model since it was looked for.
            if LEDGER_TAG in model.tags and model.name != MODEL_NAME:
                raise RetrainError(
                    f"the registered model {MODEL_NAME} is called {model.name} in {mask(self.uri)}: it was renamed",
                    f"rename it back, on MLflow's page or by MlflowClient().rename_registered_model({model.name!r}, "
                    f"{MODEL_NAME!r})",
                )

    def _lost_ledger(self) -> str | None:
        """Return the oldest run that is called as the ledger is and has entries, deleted or not."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return None
        named = f"attributes.run_name = '{LEDGER}'"
        runs = all_pages(
            self._client.search_runs, [experiment.experiment_id], named, ALL_RUNS, order_by=["attributes.start_time"]
        )
        return next((str(run.info.run_id) for run in runs if run.data.params), None)

    def _restored(self, run: str) -> Any:
        """Return the ledger; it and its experiment are restored if they were deleted on MLflow's page."""
        found = none_if_missing(lambda: self._client.get_run(run))
        if found is None:
            raise RetrainError(
                f"the run {run}, which has the history of champions, is gone from {mask(self.uri)}",
                "restore the registry from a backup; the store has a copy of each entry under "
                f"{OURS}history/, which nothing removes",
            )
        if found.info.lifecycle_stage == DELETED:
            self._experiment()
            if self._client.get_run(run).info.lifecycle_stage == DELETED:
                self._client.restore_run(run)
            log.warning("the run of the history was deleted in MLflow: it is restored")
        return found

    def _ledger_run(self) -> str:
        """Return the run that ``put_if_absent`` writes to, created together with the registered model."""
        if (existing := self._existing_ledger()) is not None:
            return str(existing.info.run_id)
        run = self._client.create_run(self._experiment(), run_name=LEDGER).info.run_id
        self._client.set_terminated(run)
        self._create_model(run)
        if (made := self._existing_ledger()) is None:  # the model is older than this tag
            self._client.set_registered_model_tag(MODEL_NAME, LEDGER_TAG, run)
            made = self._restored(self._client.get_registered_model(MODEL_NAME).tags[LEDGER_TAG])
        return str(made.info.run_id)  # the run of another process, if that was first

    def _create_model(self, ledger: str) -> None:
        description = "Malaria cell classifier: uint8 RGB cells in, probability of Parasitized out"
        tags = {LEDGER_TAG: ledger}
        create_if_missing(lambda: self._client.create_registered_model(MODEL_NAME, tags, description))

    def _versions(self) -> list[Any]:
        return list(all_pages(self._client.search_model_versions, f"name='{MODEL_NAME}'"))

    def _new_version(
        self, candidate: Candidate, model: bytes, decision: Decision, evaluation: Evaluation | None, card: str
    ) -> Any:
        self._create_model(self._ledger_run())  # a model that was deleted on MLflow's page leaves the ledger
        experiment = self._experiment()
        for run in self._client.search_runs([experiment], f"tags.decision = '{decision.id}'"):
            # Of a registration that was killed: MLflow would show it as running, or as finished.
            self._client.set_terminated(run.info.run_id, "KILLED")
        name = f"{candidate.model} of {decision.decided_at:%Y-%m-%d} ({candidate.id[:8]})"
        mlflow = self._selected()
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags={"decision": decision.id}):
            logged = log_version(mlflow, model, candidate, decision, evaluation)
        if card:
            with temporary_folder("card") as folder:
                (folder / CARD).write_text(card, encoding="utf-8")
                self._client.log_model_artifact(logged.model_id, str(folder / CARD))
        flush_files(self._client, logged.model_id, self._artifacts)
        # Last, when the run has ended: a version exists with everything it refers to, or not at all.
        return self._client.create_model_version(
            MODEL_NAME,
            source=logged.model_uri,
            run_id=logged.run_id,
            model_id=logged.model_id,
            tags=tags_of(candidate, decision, self._store),
            description=with_link(decision.sentence, decision.id, self._site),
        )

    def _selected(self) -> Any:
        """Return MLflow with this registry set globally, which parts of it require."""
        import mlflow

        # MLflow also sets environment variables for this, which later child processes must not inherit.
        with environment_kept(_SELECTING):
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
        return mlflow

    def _experiment(self, name: str = EXPERIMENT) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            create_if_missing(lambda: self._client.create_experiment(name, artifact_location=self._artifacts))
            experiment = self._client.get_experiment_by_name(name)
        if experiment.lifecycle_stage == DELETED:
            self._client.restore_experiment(experiment.experiment_id)
            log.warning("the experiment %s was deleted in MLflow: it is restored", name)
        if KIND_TAG not in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, KIND_TAG, KIND)
        return str(experiment.experiment_id)

    def _call(self, call: Callable[[], T]) -> T:
        return call_mlflow(self.uri, call)

    def _find(self, call: Callable[[], T]) -> T | None:
        return self._call(lambda: none_if_missing(call))


def _reference(version: Any) -> ChampionRef:
    tags = version.tags
    try:
        return ChampionRef(
            version=str(version.version),
            candidate=tags["candidate"],
            model=tags["model"],
            model_sha256=tags["model_sha256"],
            threshold=float(tags["threshold"]),
            since=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        )
    except (KeyError, ValueError) as error:
        raise ChampionUnusable(
            f"version {version.version} of {MODEL_NAME} has other tags in MLflow than it was registered with: {error}",
            "the next night, or any command that changes the champion, writes those of the champion again",
        ) from error
