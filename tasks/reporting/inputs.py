"""The inputs of a report: the records of one night, and what was gathered from them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from validation.records import (
    ApprovalAnswer,
    ApprovalRequest,
    Candidate,
    Decision,
    Evaluation,
    Exhibits,
    Metrics,
    Night,
    PastNight,
    Snapshot,
    Split,
    ValidationResult,
    Verdict,
)


@dataclass(frozen=True)
class ReportInputs:
    """All that a report is made from.

    ``split`` is None when the data was invalid, ``evaluation`` and ``predictions`` when no look was taken.
    ``predictions`` has the columns key, sha256, patient, fold, label (1 = Parasitized), challenger, champion, reference
    and other (probabilities, each by the member of the cell's fold; NaN where a model was not scored). ``facts`` has
    key and brightness of these cells, ``accepted`` key and patient of every accepted image where sites are counted.
    ``exhibits`` and ``cells`` were gathered for this report. ``request`` and ``answer`` are those of a decision that
    awaits, or awaited, a person.
    """

    night: Night
    decision: Decision
    snapshot: Snapshot
    validation: ValidationResult
    split: Split | None
    candidates: tuple[Candidate, ...]
    evaluation: Evaluation | None
    predictions: pd.DataFrame | None
    champion_candidate: Candidate | None
    facts: pd.DataFrame | None = None
    accepted: pd.DataFrame | None = None
    exhibits: Exhibits | None = None
    cells: pd.DataFrame | None = None
    request: ApprovalRequest | None = None
    answer: ApprovalAnswer | None = None

    @property
    def challenger(self) -> Candidate | None:
        """Tonight's challenger, if a training brought one."""
        return next((c for c in self.candidates if c.id == self.decision.challenger), None)

    @property
    def challenger_on_tuning(self) -> Metrics | None:
        """The challenger on tuning patients: on those that the champion was scored on too, where there is one."""
        return self.decision.tuning.get("challenger") or (self.challenger.tuning if self.challenger else None)

    @property
    def outcome(self) -> Verdict:
        """The verdict, or what a person made of it."""
        if self.answer is None:
            return self.decision.verdict
        return Verdict.PROMOTED if self.answer.answer == "approve" else Verdict.KEPT

    @property
    def has_champion(self) -> bool:
        """Whether there was a champion before tonight; of a decision without a contest only the night knows."""
        return self.decision.champion_before is not None or self.night.champion_before is not None

    @property
    def champion_name(self) -> str:
        """The champion before tonight, as sentences name it."""
        champion = self.decision.champion_before
        if champion is not None:
            return f"the champion (version {champion.version}, {champion.model})"
        return f"the champion (version {self.night.champion_before})" if self.has_champion else "no champion"


def past_night(decision: Decision, evaluation: Evaluation | None) -> PastNight | None:
    """Return how the champion after a look was judged: after a promotion, the new one."""
    promoted = decision.verdict is Verdict.PROMOTED
    champion = None if promoted else decision.champion_before
    if evaluation is None:
        return None
    metrics = evaluation.challenger_metrics if promoted else evaluation.champion_metrics
    if metrics is None:
        return None
    return PastNight(
        decision=decision.id,
        at=decision.decided_at,
        verdict=decision.verdict,
        version=champion.version if champion else None,
        model=champion.model if champion else None,
        balanced_accuracy=metrics.balanced_accuracy,
        sensitivity=metrics.sensitivity,
        specificity=metrics.specificity,
    )
