"""Two decisions compared: their challengers on the cells that both judged, paired by patient as the gate pairs them.

Each patient is judged by the member that has not seen it, on both nights, since folds are for ever. The pair is chosen
after its figures were known and outside the error budget: the comparison describes, and promotes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tasks.context import Context
from tasks.judging.evidence import counts_digest, judged_digest
from tasks.nights import find_decision
from tasks.pruning.retire import refuse_retired
from validation.errors import NotReproduced, UsageError
from validation.records import Decision, Evaluation, Interval
from validation.statistics.metrics import Scored, compare, summarise

LEVEL = 0.025  # one-sided, of both ends: a 95% interval
SAME_CELL = ["sha256", "patient", "fold", "label"]


@dataclass(frozen=True)
class Comparison:
    """Two challengers on the same cells; ``differences`` are later minus earlier, with 95% intervals by patient.

    ``left_out``: cells that one of the two decisions judged and the other did not, or under another label.
    """

    earlier: str
    later: str
    patients: int
    cells: int
    left_out: int
    metrics: dict[str, tuple[Interval | None, Interval | None]]
    differences: dict[str, Interval]


def compare_decisions(context: Context, one: str, other: str) -> Comparison:
    """Compare the challengers of two decisions, given by their ids or the beginnings of them, in either order.

    Raises:
        UsageError: when they are the same decision, a decision took no look, or they judged no cell in common.
        ObjectMissing: when the table of an evaluation is gone, as after its report was retired.
        NotReproduced: when a table is not the one that was judged.
    """
    found = [find_decision(context, text) for text in (one, other)]
    earlier, later = sorted(found, key=lambda decision: (decision.decided_at, decision.id))
    if earlier.id == later.id:
        raise UsageError(f"both are decision {later.id}", "name two: `retrain site` lists all")
    evaluations = [_evaluation(context, decision) for decision in (earlier, later)]
    tables = [_calls(context, evaluation) for evaluation in evaluations]
    both = tables[0].merge(tables[1], on=SAME_CELL, suffixes=("_0", "_1"))
    if both.empty:
        raise UsageError(
            f"decisions {earlier.id} and {later.id} judged no cell in common, so nothing can be paired",
            "compare decisions on the same data; each has its own figures in its report",
        )
    codes = pd.factorize(both["patient"], sort=True)[0]
    before, after = (
        Scored(both["label"].to_numpy() == 1, both[f"challenger_{place}"].to_numpy(float), codes, threshold)
        for place, threshold in enumerate(evaluation.challenger_threshold for evaluation in evaluations)
    )
    summaries = [summarise(scored).intervals() for scored in (before, after)]
    return Comparison(
        earlier=earlier.id,
        later=later.id,
        patients=after.count,
        cells=len(both),
        left_out=sum(map(len, tables)) - 2 * len(both),
        metrics={name: (value, summaries[1][name]) for name, value in summaries[0].items()},
        differences=compare(after, before, resamples=context.settings.gate.resamples, level=LEVEL),
    )


def _evaluation(context: Context, decision: Decision) -> Evaluation:
    if decision.evaluation is None:
        raise UsageError(
            f"decision {decision.id} ({decision.verdict.value}) took no look: no patient judged its challenger",
            "name a decision with figures: `retrain site` lists all",
        )
    refuse_retired(context, decision.id)
    return context.records.load(Evaluation, decision.evaluation)


def _calls(context: Context, evaluation: Evaluation) -> pd.DataFrame:
    """Return the challenger's probabilities by cell, of a table that is the one that was judged."""
    table = context.records.load_table(evaluation.predictions)
    counts = counts_digest(table, "challenger", evaluation.challenger_threshold)
    if judged_digest(table) != evaluation.judged or counts != evaluation.counts["challenger"]:
        raise NotReproduced(
            f"the predictions of evaluation {evaluation.id} are not those that were judged",
            "find out who changed them in the bucket",
        )
    return table[[*SAME_CELL, "challenger"]].drop_duplicates(SAME_CELL)
