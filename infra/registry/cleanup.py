"""What MLflow keeps that nobody needs: runs of registrations that were killed, pages of nights that were retired.

Used by ``infra.registry.registry`` alone. Registered versions, their runs and the run of the history are never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from infra.registry.nights import REPORT

PAGE_SIZE = 500


def abandoned_runs(client: Any, experiment: str, versions: Collection[Any], keep: str | None) -> Iterator[str]:
    """Yield the runs that no version came from: their registration was killed, and begun anew since, or never was."""
    needed = {version.run_id for version in versions} | {keep}
    for run in _runs(client, experiment, ""):
        if run.info.run_id not in needed and "decision" in run.data.tags:
            yield run.info.run_id


def unfinished_nights(client: Any, experiment: str) -> Iterator[str]:
    """Yield the runs of nights that were killed while they were being written."""
    for run in _runs(client, experiment, "attributes.status != 'FINISHED'"):
        yield run.info.run_id


def nights_of(client: Any, experiment: str, decision: str) -> list[str]:
    """Return the runs of the nights that came to a decision."""
    return [run.info.run_id for run in _runs(client, experiment, f"tags.decision = '{decision}'")]


def remove_run(client: Any, uri: str, run_id: str) -> None:
    """Delete a run with its files, and the models that were logged in it."""
    run = client.get_run(run_id)
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
        _delete_files(model.artifact_location, uri, None)
        client.delete_logged_model(model.model_id)
    _delete_files(run.info.artifact_uri, uri, None)
    # Last: a run that is still there is found again.
    client.delete_run(run_id)


def remove_page(client: Any, uri: str, run_id: str) -> None:
    """Delete the report from the run of a night; its figures and its record stay."""
    run = client.get_run(run_id)
    if any(file.path == REPORT for file in client.list_artifacts(run_id)):
        _delete_files(run.info.artifact_uri, uri, REPORT)


def _runs(client: Any, experiment: str, wanted: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], wanted, max_results=PAGE_SIZE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _delete_files(location: str, uri: str, path: str | None) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(location, tracking_uri=uri).delete_artifacts(path)
    except FileNotFoundError:
        return  # it never had any
