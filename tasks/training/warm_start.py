"""Which earlier weights tonight's trainings may begin with: those of the night that made the champion.

They were fitted on patients that tonight's models are neither chosen nor judged on, or they are not used.
"""

from __future__ import annotations

import logging

from infra.store.records import Records
from tasks.champion.history import history
from tasks.context import Context
from validation.digest import sha256
from validation.errors import RetrainError
from validation.records import Candidate, ChampionRef, Decision, Split

log = logging.getLogger(__name__)


def earlier_candidates(context: Context, champion: ChampionRef | None, split: Split) -> dict[str, Candidate]:
    """Return the candidates of the champion's night whose weights are at hand and innocent, by model name.

    Whatever is wrong with one costs its trainings the head start, and nothing else.
    """
    found: dict[str, Candidate] = {}
    for id_ in _of_the_champions_night(context, champion) if champion else ():
        try:
            candidate = context.records.load(Candidate, id_)
            problem = _problem(context, candidate, split)
        except RetrainError as error:
            log.warning("training without the weights of candidate %s: %s", id_, error.message)
            continue
        if problem:
            log.info("training %s without the weights of candidate %s: %s", candidate.spec.model, id_, problem)
        else:
            found[candidate.spec.model] = candidate
    return found


def _of_the_champions_night(context: Context, champion: ChampionRef) -> tuple[str, ...]:
    entries = [entry for entry in history(context) if entry.version_after == champion.version and entry.decision]
    decision = context.records.find(Decision, entries[0].decision) if entries else None
    return decision.candidates if decision else (champion.candidate,)


def _problem(context: Context, candidate: Candidate, split: Split) -> str:
    if not context.store.exists(candidate.weights_key):
        return "they are no longer kept"
    if sha256(context.store.get(candidate.weights_key)) != candidate.weights_sha256:
        return "they are damaged"
    earlier = context.records.load(Split, candidate.spec.split)
    fitted = _cells(context.records, earlier, "train")
    others = _cells(context.records, split, "validation", "holdout")
    return "it was trained on cells that tonight's models are chosen or judged on" if fitted & others else ""


def _cells(records: Records, split: Split, *sides: str) -> set[str]:
    """Return the patients and the pixels of some sides of a split."""
    rows = records.load_table(split.table)
    rows = rows[rows["side"].isin(sides)]
    return {f"patient {name}" for name in rows["patient"] if name} | set(rows["pixels"])
