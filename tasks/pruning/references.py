"""What in the store is needed, and by what: recomputed from the records each time, never stored.

A night's decision needs its report's records and tables; a registered version, an open approval and the newest night
also need their model files. What a record names is a reference; the records themselves are the roots: decisions,
nights, the field, the history, approvals, answers, the ledger of looks and the origins of patients are never removed.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from infra.registry.registry import Registry
from tasks.champion.approval import open_requests
from tasks.champion.history import history
from tasks.context import Context
from tasks.nights import decisions, load_all, newest_night
from tasks.snapshots.tables import latest
from validation.records import (
    ApprovalAnswer,
    ApprovalRequest,
    Candidate,
    Decision,
    Evaluation,
    Exhibits,
    Member,
    Record,
    Retired,
    Snapshot,
    Split,
    Start,
    ValidationResult,
)

THREADS = 16
# Only these kinds are ever removed; everything else in the store stays.
REMOVABLE = tuple(
    record.kind for record in (Snapshot, ValidationResult, Split, Member, Candidate, Evaluation, Exhibits)
)


@dataclass
class Needed:
    """What must stay: some records with all that belongs to them, others alone."""

    whole: set[tuple[str, str]] = field(default_factory=set)
    records: set[tuple[str, str]] = field(default_factory=set)

    def all_of(self, record: type[Record], *ids: str | None) -> None:
        """Keep a record with its tables and files."""
        self.whole |= {(record.kind, id_) for id_ in ids if id_}

    def record_of(self, record: type[Record], *ids: str | None) -> None:
        """Keep a record; its tables and files may go."""
        self.records |= {(record.kind, id_) for id_ in ids if id_}


class References:
    """All roots of one store and its registry, read once.

    Every method raises RetrainError for a record that cannot be read, since its references are then not known, and
    Unreachable.
    """

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._origins = registry.version_sources()

    @cached_property
    def decisions(self) -> list[Decision]:
        """All decisions, newest first."""
        return decisions(self._context, strict=True)

    @cached_property
    def retired(self) -> set[str]:
        """The decisions whose report was retired."""
        return set(self._context.records.ids(Retired))

    def count_as_retired(self, decisions: Collection[str]) -> None:
        """Treat these decisions as retired: what only their reports need is not needed."""
        self.retired.update(decisions)

    @cached_property
    def protected(self) -> set[str]:
        """Decisions that a person may act upon or ask about at any time, so that nothing of them is removed.

        Those of registered versions, of the history, of open approvals and of answered ones; and that of the newest
        night: it is judged again when the settings change.
        """
        newest = newest_night(self._context)
        return {
            *self._may_be_scored_again,
            *(entry.decision for entry in history(self._context)),
            *self._context.records.ids(ApprovalAnswer),
            *([newest.decision] if newest and newest.decision else []),
            *(decision.id for decision in self.decisions[:1]),
        }

    @cached_property
    def _open_requests(self) -> list[ApprovalRequest]:
        load_all(self._context, ApprovalRequest, strict=True)
        return open_requests(self._context)

    @cached_property
    def _may_be_scored_again(self) -> set[str]:
        """Decisions of registered versions and of open approvals."""
        return {decision for _, decision in self._origins} | {request.decision for request in self._open_requests}

    def needed(self) -> Needed:
        """Return what must stay in the store now."""
        needed = Needed()
        for decision in self.decisions:
            self._of_decision(decision, needed)
        needed.all_of(Candidate, *(candidate for candidate, _ in self._origins))
        needed.all_of(Candidate, *(request.challenger for request in self._open_requests))
        self._of_starts(needed)
        self._of_now(needed)
        self._of_candidates(needed)
        return needed

    def _of_decision(self, decision: Decision, needed: Needed) -> None:
        retired = decision.id in self.retired
        keep = needed.record_of if retired else needed.all_of
        keep(Snapshot, decision.snapshot)
        keep(ValidationResult, decision.validation)
        keep(Evaluation, decision.evaluation)
        needed.all_of(Exhibits, None if retired else decision.id)
        needed.all_of(Split, decision.split)
        champion = decision.champion_before.candidate if decision.champion_before else None
        needed.record_of(Candidate, champion, decision.challenger, *decision.candidates)
        if self.keeps_models(decision):
            needed.all_of(Candidate, *decision.candidates)

    def keeps_models(self, decision: Decision) -> bool:
        """Whether the model files of a decision's candidates stay: it is new, protected, or has no report yet."""
        rules = self._context.settings.prune
        new = self._is_new(decision, rules.models_nights, rules.models_days)
        return new or decision.id in self.protected or not self._has_report(decision)

    def may_retire(self, decision: Decision) -> bool:
        """Whether a decision's report may go: it is old, there are many newer ones, and it is not protected."""
        rules = self._context.settings.prune
        new = self._is_new(decision, rules.reports_nights, rules.reports_days)
        return not (new or decision.id in self.protected) and self._has_report(decision)

    def _is_new(self, decision: Decision, nights: int, days: float) -> bool:
        """Whether a decision is one of the newest, or young."""
        young = datetime.now(UTC) - decision.decided_at < timedelta(days=days)
        return young or any(decision.id == newer.id for newer in self.decisions[:nights])

    def _has_report(self, decision: Decision) -> bool:
        """Whether its exhibits were gathered; until then its report needs what it would gather them from."""
        return decision.id in self._exhibits or decision.id in self.retired

    @cached_property
    def _exhibits(self) -> set[str]:
        return set(self._context.records.ids(Exhibits))

    def _of_starts(self, needed: Needed) -> None:
        for start in load_all(self._context, Start, strict=True):
            needed.record_of(Candidate, start.champion.candidate if start.champion else None)

    def _of_now(self, needed: Needed) -> None:
        """Keep the newest snapshot and the one before it: the next pull and the next validation compare with them."""
        records = self._context.records
        snapshot = latest(self._context)
        needed.all_of(Snapshot, *((snapshot.id, snapshot.parent) if snapshot else ()))
        validation = records.latest("validation", ValidationResult)
        needed.all_of(ValidationResult, validation.id if validation else None)

    def _of_candidates(self, needed: Needed) -> None:
        """Keep the sources of the candidates that stay: of a registered one all, since it must be reproducible.

        The files of members are needed until their candidate is stored; later only those of registered ones, whose
        native weights are for whoever wants to train further.
        """
        records = self._context.records
        registered = {candidate for candidate, _ in self._origins}
        registered |= {request.challenger for request in self._open_requests}

        def origin(id_: str) -> tuple[str, Candidate | None, Split | None, ValidationResult | None]:
            candidate = records.find(Candidate, id_, strict=True)
            split = records.find(Split, candidate.split, strict=True) if candidate else None
            validation = records.find(ValidationResult, split.validation, strict=True) if split else None
            return id_, candidate, split, validation

        candidates = {id_ for kind, id_ in needed.whole | needed.records if kind == Candidate.kind}
        with ThreadPoolExecutor(THREADS) as pool:
            for id_, candidate, split, validation in pool.map(origin, sorted(candidates)):
                keep = needed.all_of if id_ in registered else needed.record_of
                keep(Member, *(member.id for member in candidate.members) if candidate else ())
                needed.all_of(Split, split.id if split else None)
                keep(ValidationResult, validation.id if validation else None)
                keep(Snapshot, validation.snapshot if validation else None)

    def rescored_evaluations(self) -> list[Evaluation]:
        """Return the evaluations whose cells a rollback or an approval would score again."""
        ids = (decision.evaluation for decision in self.decisions if decision.id in self._may_be_scored_again)
        return [e for id_ in ids if id_ and (e := self._context.records.find(Evaluation, id_, strict=True))]
