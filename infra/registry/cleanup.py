"""Removes unneeded MLflow runs and pages: of killed registrations and of retired nights.

Used by ``infra.registry.registry`` alone. Registered versions, their runs and the run of the history are never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from infra.registry.mlflow_client import all_pages
from infra.registry.nights import REPORT

PAGE_SIZE = 500


def abandoned_runs(client: Any, experiment: str, versions: Collection[Any], keep: str | None) -> Iterator[str]:
    """Yield the runs of registrations that were killed: no version has them as its source."""
    needed = {version.run_id for version in versions} | {keep}
    for run in _runs(client, experiment, ""):
        if run.info.run_id not in needed and "decision" in run.data.tags:
            yield run.info.run_id


def unfinished_nights(client: Any, experiment: str) -> Iterator[str]:
    """Yield the runs of nights whose writing was killed."""
    for run in _runs(client, experiment, "attributes.status = 'RUNNING'"):
        yield run.info.run_id


def nights_of(client: Any, experiment: str, decision: str) -> list[str]:
    """Return the runs of the nights with a decision."""
    return [run.info.run_id for run in _runs(client, experiment, f"tags.decision = '{decision}'")]


def remove_run(client: Any, uri: str, run_id: str) -> None:
    """Delete a run with its files, and the models that were logged in it."""
    run = client.get_run(run_id)
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
        _delete_files(model.artifact_location, uri, None)
        client.delete_logged_model(model.model_id)
    _delete_files(run.info.artifact_uri, uri, None)
    # Last: a run that still exists is found again.
    client.delete_run(run_id)


def remove_page(client: Any, uri: str, run_id: str) -> None:
    """Delete the report from the run of a night; its metrics and its record stay."""
    run = client.get_run(run_id)
    if any(file.path == REPORT for file in client.list_artifacts(run_id)):
        _delete_files(run.info.artifact_uri, uri, REPORT)


def _runs(client: Any, experiment: str, wanted: str) -> Iterator[Any]:
    return all_pages(client.search_runs, [experiment], wanted, max_results=PAGE_SIZE)


def _delete_files(location: str, uri: str, path: str | None) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(FileNotFoundError):  # it never had any
        get_artifact_repository(location, tracking_uri=uri).delete_artifacts(path)
