"""Field: the deployed champion scores patients that came after its training, once, before anything is trained on them.

What it finds is set beside what was promised when it was promoted. Nothing of it chooses a model, so it never wears
out: it is the only test of the very file that is deployed.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tasks.cells.cell_data import CellData, load_cells
from tasks.cells.scoring import score_deployed
from tasks.champion.in_force import registered_file
from tasks.context import Context
from tasks.judging.before_members import sides_of
from tasks.nights import load_all, undamaged
from tasks.stage import stage
from validation.digest import digest
from validation.errors import ModelFileInvalid
from validation.records import (
    Candidate,
    ChampionRef,
    Decision,
    Evaluation,
    FieldMonth,
    FieldNight,
    FieldReport,
    Pack,
    Split,
)
from validation.statistics.field import summarise_field
from validation.statistics.metrics import Scored
from validation.statistics.paired_tests import Floats

log = logging.getLogger(__name__)

TALLIES = ["tp", "positives", "tn", "negatives"]


def score_field(
    context: Context, registry: Registry, champion: ChampionRef | None, split: Split, pack: Pack
) -> FieldReport | None:
    """Score tonight's new patients with the champion's file; return promised beside found since its promotion.

    None without a champion, or when it has met every patient so far. A champion that cannot be scored is reported by
    the night itself.
    """
    if champion is None:
        return None
    cells, found = load_cells(context, split, pack), _found(context, champion)
    new = _unmet(context, champion, cells, found)
    if len(new):
        try:
            file = ModelFile(registered_file(registry, champion), sha256_expected=champion.model_sha256)
            scored = score_deployed(context, file, champion.threshold, new).scored
        except ModelFileInvalid as error:
            log.error("version %s is not scored on new patients: %s", champion.version, error)
        else:
            _keep(context, champion, split, new, scored)
            found = _found(context, champion)
    return _report(context, registry, champion, found)


def field_report(context: Context, registry: Registry, champion: ChampionRef) -> FieldReport | None:
    """Return what was promised of a champion and what was found since, by month; None before its first new patient."""
    return _report(context, registry, champion, _found(context, champion))


def _report(context: Context, registry: Registry, champion: ChampionRef, found: pd.DataFrame) -> FieldReport | None:
    promised = _promised(context, registry, champion) if len(found) else None
    if promised is None:
        return None
    summary = summarise_field(promised, found[TALLIES].to_numpy(np.float64))
    months = []
    for month, rows in found.groupby("month", sort=True):
        sums = rows[TALLIES].sum()
        months.append(
            FieldMonth(
                month=str(month),
                patients=len(rows),
                sensitivity=float(sums["tp"] / sums["positives"]) if sums["positives"] else None,
                specificity=float(sums["tn"] / sums["negatives"]) if sums["negatives"] else None,
            )
        )
    rates = {"sensitivity": summary.sensitivity, "specificity": summary.specificity}
    rates["balanced_accuracy"] = summary.balanced_accuracy
    report = FieldReport(
        version=champion.version,
        patients=summary.patients,
        cells=summary.cells,
        promised={name: rate.promised for name, rate in rates.items() if rate.promised},
        found={name: rate.found for name, rate in rates.items() if rate.found},
        worse=tuple(name for name, rate in rates.items() if rate.alarm is not None),
        months=tuple(months),
    )
    if report.worse:
        log.error("%s", report.sentence)
    return report


def _unmet(context: Context, champion: ChampionRef, cells: CellData, found: pd.DataFrame) -> CellData:
    """Return the cells of patients with a name that the champion has neither been made with nor scored."""
    met = _met(context, champion)
    if met is None:
        return cells.take(np.zeros(len(cells), bool))
    scored = set(found["patient"])
    chosen = [
        bool(patient) and not {patient, origin} & met and patient not in scored
        for patient, origin in zip(cells.patients, cells.origins, strict=True)
    ]
    return cells.take(np.array(chosen, bool))


def _met(context: Context, champion: ChampionRef) -> set[str] | None:
    """Return the patients that were there when the champion was trained; None where the records are gone."""
    candidate = context.records.find(Candidate, champion.candidate)
    if candidate is None:
        table = sides_of(context, champion.candidate)
        return None if table is None else set(table["patient"])
    rows = undamaged(lambda: context.records.load_table(context.records.load(Split, candidate.split).table))
    return None if rows is None else set(rows["patient"]) | set(rows["origin"])


def _keep(context: Context, champion: ChampionRef, split: Split, cells: CellData, scored: Scored) -> None:
    names = sorted(set(cells.patients))
    table = pd.DataFrame(scored.tallies.astype(np.int64), columns=TALLIES).assign(patient=names)
    id_ = digest(champion.model_sha256, split.id, names)
    night = FieldNight(
        id=id_,
        champion=champion.model_sha256,
        split=split.id,
        patients=len(names),
        table=context.records.save_table(FieldNight, id_, "patients", table),
        at=datetime.now(UTC),
    )
    context.records.save_once(night, id_)
    log.info("version %s was scored on %d new patients before any training on them", champion.version, len(names))


def _found(context: Context, champion: ChampionRef) -> pd.DataFrame:
    """Return the tallies of all patients that a champion was scored on, in the order of their arrival."""
    nights = [night for night in load_all(context, FieldNight) if night.champion == champion.model_sha256]
    found = []
    for night in sorted(nights, key=lambda night: (night.at, night.id)):
        table = undamaged(partial(context.records.load_table, night.table))
        if table is not None:
            found.append(table.assign(month=f"{night.at:%Y-%m}"))
    if not found:
        return pd.DataFrame(columns=[*TALLIES, "patient", "month"])
    return pd.concat(found, ignore_index=True).drop_duplicates("patient", ignore_index=True)


def _promised(context: Context, registry: Registry, champion: ChampionRef) -> Floats | None:
    """Return the tallies by patient of the evaluation that the champion was promoted on."""
    decision = context.records.find(Decision, registry.decision_of(champion.version) or "")
    evaluation = context.records.find_whole(Evaluation, (decision.evaluation if decision else "") or "")
    if evaluation is None:
        return None
    table = context.records.load_table(evaluation.predictions)
    codes, _ = pd.factorize(table["patient"], sort=True)
    labels: npt.NDArray[np.bool_] = table["label"].to_numpy() == 1
    return Scored(labels, table["challenger"].to_numpy(np.float64), codes.astype(np.int64), champion.threshold).tallies


field_task = stage(score_field, name="field")
