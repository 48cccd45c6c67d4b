"""Combine: the members of one CNN become one model file with one frozen threshold, a candidate."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from infra.scoring.model_file import ModelFile
from infra.store.keys import CANDIDATE_ASSET, SNAPSHOT_ASSET, candidate_key
from tasks.cells.cell_data import CellData, load_cells, tuned_cells
from tasks.cells.scoring import score_cells
from tasks.context import Context
from tasks.models.onnx_file import combine as combine_files
from tasks.stage import stage
from tasks.training.specs import find_with_file
from validation.digest import digest, sha256
from validation.errors import ModelFileInvalid, ObjectMissing, TrainingFailed
from validation.records import Candidate, Member, Pack, Split, TrainSpec
from validation.statistics.metrics import summarise
from validation.statistics.threshold import choose_threshold

log = logging.getLogger(__name__)

AGAIN = "run the night again"


def find_candidate(context: Context, specs: Sequence[TrainSpec]) -> tuple[str, Candidate | None]:
    """Return the id of the candidate of these members, and the candidate if its file is stored already.

    If that was pruned, its record stays for the reports: combined again it gets another id.
    """
    target = context.settings.training.target_sensitivity
    id_, stored = find_with_file(context, Candidate, digest([spec.model_dump(mode="json") for spec in specs], target))
    if stored is None or sha256(context.store.get(stored.model_key)) == stored.model_sha256:
        return id_, stored
    # As two machines with one store could leave it: the record of one beside the file of the other.
    log.error(
        "%s is not the file of candidate %s: it is removed, and the members combined again", stored.model_key, id_
    )
    context.store.delete(stored.model_key)
    return find_with_file(context, Candidate, id_)


def combine(
    context: Context, members: Sequence[Member], missing: Mapping[int, str], split: Split, pack: Pack
) -> Candidate:
    """Return the candidate of ``members``, all of one CNN; ``missing``: fold -> why its member could not be trained.

    The patients of a missing member's fold judge nothing tonight. More than half of the members must be there, so that
    most patients judge.

    Raises:
        TrainingFailed: when too few members are left, or a file of theirs cannot be used.
    """
    if len(members) <= len(missing):
        raise TrainingFailed(
            f"{len(missing)} of {len(missing) + len(members)} members could not be trained: "
            + "; ".join(dict.fromkeys(missing.values())),
            "correct the cause and run the night again: the members that were trained are kept",
        )
    members = sorted(members, key=lambda member: member.spec.member)
    id_, stored = find_candidate(context, [member.spec for member in members])
    if stored is not None:
        return stored
    try:
        onnx = combine_files([(member.spec.member, _member_file(context, member)) for member in members])
        candidate = _candidate(context, id_, onnx, members, missing, load_cells(context, split, pack))
    except ObjectMissing as error:
        # Another machine may have combined them meanwhile, and pruned their files.
        _, stored = find_candidate(context, [member.spec for member in members])
        if stored is None:
            raise TrainingFailed(f"a member of {members[0].spec.model} is gone: {error.message}", AGAIN) from error
        return stored
    except ModelFileInvalid as error:
        raise TrainingFailed(
            f"the members of {members[0].spec.model} make no usable model file: {error.message}", AGAIN
        ) from error
    context.store.put(candidate.model_key, onnx)
    stored = context.records.save_once(candidate, id_)
    if stored.model_key != candidate.model_key:
        context.store.delete(candidate.model_key)
        log.info("%s was combined by another machine at the same time: its file counts", candidate.model)
        return stored
    count = f"{len(members)} member{'s' * (len(members) > 1)}"
    log.info("%s: %s in one file of %.1f MB", candidate.model, count, len(onnx) / 1e6)
    return candidate


def _member_file(context: Context, member: Member) -> bytes:
    data = context.store.get(member.model_key)
    if sha256(data) != member.model_sha256:
        # Without its file it is trained again.
        context.store.delete(member.model_key)
        raise ModelFileInvalid(f"{member.model_key} is not the file that was stored; it was removed", AGAIN)
    return data


def _candidate(
    context: Context, id_: str, onnx: bytes, members: Sequence[Member], missing: Mapping[int, str], cells: CellData
) -> Candidate:
    """Freeze the threshold on the tuning patients, each scored by the members that it tuned."""
    spec, target = members[0].spec, context.settings.training.target_sensitivity
    folds = tuple(member.spec.member for member in members)
    tuning, columns = tuned_cells(cells, folds)
    scored = score_cells(context, ModelFile(onnx), 0.5, tuning, columns).scored
    threshold = choose_threshold(
        scored.labels,
        scored.probabilities,
        scored.patients,
        prevalence=float(cells.labels.mean()),
        target_sensitivity=target,
    )
    seen_by_one = np.any([cells.folds != fold for fold in folds], axis=0)
    seen = sorted(set(cells.patients[seen_by_one]) - {""})
    return Candidate(
        id=id_,
        model=spec.model,
        split=spec.split,
        side=spec.side,
        members=tuple(members),
        missing=dict(missing),
        model_key=candidate_key(id_, f"{sha256(onnx)[:16]}.onnx"),
        model_sha256=sha256(onnx),
        model_bytes=len(onnx),
        threshold=threshold,
        target_sensitivity=target,
        tuning=summarise(replace(scored, threshold=threshold)),
        train_patients=len(seen),
        train_patients_digest=digest(seen),
        created_at=datetime.now(UTC),
    )


combine_task = stage(combine, makes=CANDIDATE_ASSET, each="model", of=[SNAPSHOT_ASSET])
