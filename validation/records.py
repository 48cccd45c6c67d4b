"""The records that stages pass to each other: frozen, small, JSON, with the digest of their inputs as id.

A record contains numbers and names; arrays, tables and model files are in the store, named by key. Times are for
people and never part of an id, so a stage that finds its record in the store has nothing to do.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

POSITIVE = "Parasitized"
NEGATIVE = "Uninfected"
CLASSES = (POSITIVE, NEGATIVE)

# The metrics that have an interval, in the order of display.
METRIC_NAMES = ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity")

# The cost of a finding: the image, a line in the report, or the whole night.
Severity = Literal["reject", "warn", "stop"]


# Words of stored sentences that claim more than was tested, and what they are read as.
_CLAIMS = {"and worse in nothing that matters": "and not worse by more than the margins allow"}


def _without_claims(sentence: str) -> str:
    for claim, meaning in _CLAIMS.items():
        sentence = sentence.replace(claim, meaning)
    return sentence


Sentence = Annotated[str, AfterValidator(_without_claims)]


class Record(BaseModel):
    """Base of all records: immutable, strict about unknown fields, JSON both ways.

    A record with a ``form`` has changed since 0.1: one that was stored before counts as absent (infra.store.records).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    kind: ClassVar[str] = "record"


class Finding(Record):
    """One problem of one object, in machine-readable form."""

    reason: str
    key: str
    detail: str
    severity: Severity = "reject"


class Snapshot(Record):
    """The content of the store at one moment. ``id`` is the digest of its rows (key, SHA-256, size, label, patient).

    ``table`` (Parquet) has one row per object under ``labeled/``: key, size, etag, sha256 (empty when not fetched),
    label (empty for an unknown class), patient (empty for none), first_seen (ISO time) and problem (the reason why it
    could not be fetched or named; mostly empty).
    """

    kind: ClassVar[str] = "snapshots"

    id: str
    parent: str | None
    table: str
    objects: int = Field(ge=0)
    bytes: int = Field(ge=0)
    by_class: dict[str, int]
    patients: int = Field(ge=0)
    without_patient: int = Field(ge=0)
    new: int = Field(ge=0, description="objects that are not in the parent snapshot in this form")
    gone: int = Field(ge=0, description="objects of the parent that no longer exist")
    created_at: datetime


class Check(Record):
    """One check of the whole batch."""

    name: str
    expected: str
    observed: str
    passed: bool
    severity: Literal["warn", "invalid"]


class ValidationResult(Record):
    """The result of validating a snapshot. Table ``facts``: one row per accepted image (see tasks/validate.py)."""

    kind: ClassVar[str] = "validations"

    id: str
    snapshot: str
    facts: str
    findings: str
    images: int = Field(ge=0)
    accepted: int = Field(ge=0)
    rejected: int = Field(ge=0)
    by_class: dict[str, int]
    patients: int = Field(ge=0)
    without_patient: int = Field(ge=0)
    reasons: dict[str, int] = Field(description="number of findings by reason")
    new_reasons: dict[str, int] = Field(default_factory=dict, description="the same, of objects not in the parent")
    examples: tuple[Finding, ...] = Field(description="the first ten findings of each reason")
    checks: tuple[Check, ...]
    bounds: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="fact -> lowest and highest usual value"
    )
    reference: str = Field("", description="origin of the images behind the bounds and the drift")
    new: int = Field(0, ge=0, description="accepted images that are not in the parent snapshot")
    data_docs: str | None = Field(None, description="key of the Data Docs' first page in the store")

    @property
    def valid(self) -> bool:
        """Whether the batch may be trained on."""
        return all(check.passed for check in self.checks if check.severity == "invalid")


class CellCount(Record):
    """Patients, and cells of both classes."""

    patients: int = Field(ge=0)
    positive: int = Field(ge=0)
    negative: int = Field(ge=0)

    @property
    def cells(self) -> int:
        """Cells of both classes."""
        return self.positive + self.negative


class Split(Record):
    """Which fold each cell is in (validation/patients.py). Table ``table``: one row per cell, sorted by (sha256, key).

    Its columns: key, sha256, pixels, label, patient (empty for none), origin (the name under which the patient's cells
    first came, from which fold and roles follow; mostly the patient) and fold (-1 for a cell without a patient, which
    every member is trained on and nobody is judged by).

    Table ``crossings``: key, pixels, patient, origin, before: images left out, since their pixels were filed under a
    patient of another origin before.
    """

    kind: ClassVar[str] = "splits"

    form: Literal[2] = 2
    id: str
    validation: str
    table: str
    folds: tuple[CellCount, ...] = Field(description="patients and cells that each member judges, by fold")
    without_patient: int = Field(ge=0, description="images with no patient: trained on, never judged by")
    crossed: int = Field(0, ge=0, description="images left out: their pixels were filed under another patient before")
    crossings: str | None = None

    @property
    def judging(self) -> CellCount:
        """All patients with a name, and their cells."""
        return CellCount(
            patients=sum(fold.patients for fold in self.folds),
            positive=sum(fold.positive for fold in self.folds),
            negative=sum(fold.negative for fold in self.folds),
        )


class Pack(Record):
    """All cells of a split as one uint8 array [n, side, side, 3] in the rows' order of the split's table.

    The array is a file on this machine (``infra.local.files.Workspace.pack_path``), rebuilt wherever it is missing.
    ``pixels``, a SHA-256 over that of each row, proves that the rebuilt bytes are the same.
    """

    kind: ClassVar[str] = "packs"

    id: str
    split: str
    side: int = Field(gt=0)
    cells: int = Field(ge=0)
    pixels: str


class TrainSpec(Record):
    """Everything that determines the result of one member's training: data, fold, architecture, recipe, seed."""

    model: str
    member: int = Field(ge=0, description="the fold whose patients it is not trained on")
    split: str
    side: int = Field(gt=0)
    seed: int = Field(ge=0)
    recipe: dict[str, Any]
    recipe_version: int


class EpochRecord(Record):
    """One epoch, as reported by the framework's callbacks. Losses are means of binary cross-entropy (nats).

    With a ``temperature``, ``valid_loss`` is that of the calibrated probabilities (statistics.calibration), and
    ``train_loss`` is against smoothed labels, where the recipe smooths them. ``is_kept``: whether its weights were the
    best so far.
    """

    epoch: int = Field(ge=1)
    train_loss: float
    valid_loss: float
    valid_accuracy: float | None = None
    train_accuracy: float | None = None
    learning_rate: float | None = None
    temperature: float | None = None
    is_kept: bool | None = None
    seconds: float = Field(ge=0)
    ended_at: datetime | None = None


class Interval(Record):
    """A value and its two-sided confidence interval at ``level``, patients as the unit."""

    value: float
    low: float
    high: float
    level: float = 0.95


class Metrics(Record):
    """Performance of one model on one set of cells at one frozen threshold. An undefined metric is None."""

    cells: int
    patients: int
    threshold: float
    tp: int
    fp: int
    tn: int
    fn: int
    accuracy: Interval | None
    balanced_accuracy: Interval | None
    auc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    log_loss: float | None

    def intervals(self) -> dict[str, Interval | None]:
        """Return every metric that has an interval, by name."""
        return {name: getattr(self, name) for name in METRIC_NAMES}


class Member(Record):
    """One trained network of a candidate. ``id`` is the digest of its spec.

    Its file is ONNX: ``images`` uint8 [n, side, side, 3] -> ``logit`` float32 [n], calibrated.
    """

    kind: ClassVar[str] = "members"

    id: str
    spec: TrainSpec
    model_key: str
    model_sha256: str
    model_bytes: int
    weights_key: str
    weights_sha256: str
    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped: Literal["early", "deadline", "finished"]
    train_cells: int
    train_patients: int
    tuning_patients: int
    versions: dict[str, str]
    device: str
    seconds: float
    peak_memory_mb: float
    batch_key: str | None = Field(None, description="image of the first training batch as the CNN's input")
    batch_size: int | None = Field(None, description="as fitted; smaller than configured when memory ran out")
    unused_gpu: str | None = Field(None, description="that the machine had a GPU, and why the framework did not use it")
    started_at: datetime | None = Field(None, description="when its process began to train")
    created_at: datetime


class Candidate(Record):
    """A trained CNN: its members in one model file, with its frozen threshold. ``id`` is the digest of its members."""

    kind: ClassVar[str] = "candidates"

    form: Literal[2] = 2
    id: str
    model: str
    split: str
    side: int = Field(gt=0)
    members: tuple[Member, ...] = Field(description="in the order of their columns; fewer where a training failed")
    missing: dict[int, str] = Field(default_factory=dict, description="fold -> why its member could not be trained")
    model_key: str
    model_sha256: str
    model_bytes: int
    threshold: float
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="of the threshold on the tuning patients; None: best balanced accuracy"
    )
    tuning: Metrics = Field(description="each tuning patient scored by the members that it tuned")
    train_patients: int = Field(ge=0, description="patients that at least one member was trained or tuned on")
    train_patients_digest: str
    created_at: datetime

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that its members judge, in the order of their columns."""
        return tuple(member.spec.member for member in self.members)

    @property
    def seconds(self) -> float:
        """Seconds of training, all members together."""
        return sum(member.seconds for member in self.members)


class ChampionRef(Record):
    """A registered version, such as the champion."""

    version: str
    candidate: str
    model: str
    model_sha256: str
    threshold: float
    since: datetime | None = None


class Look(Record):
    """One evaluation of a challenger against the champion on the judging patients, recorded before its result is known.

    Models are named by the SHA-256 of their files.
    """

    kind: ClassVar[str] = "looks"

    form: Literal[2] = 2
    number: int = Field(ge=1)
    challenger: str
    champion: str | None
    spent: float = Field(ge=0, description="share of the error budget: the level of tonight's one-sided tests")
    looked_at: datetime

    @model_validator(mode="after")
    def _costs_something(self) -> Look:
        """Refuse a look against a champion that spends nothing: an edited one."""
        if self.champion is not None and self.spent <= 0:
            raise ValueError("a look against a champion spends a part of the error budget")
        return self


class Spread(Record):
    """Precision of a difference between two models, patients as the unit."""

    error: float = Field(ge=0, description="standard error")
    effective_patients: float = Field(ge=0, description="patients of equal size with as much information")


class Evaluation(Record):
    """Challenger, champion and reference on the same cells, each patient by the member that has not seen it.

    Table ``predictions``: one row per cell. ``judged`` is the digest of its cells (sha256, patient, fold, label), and
    ``counts`` that of the per-patient counts of right calls: both are computed again before a promotion.
    """

    kind: ClassVar[str] = "evaluations"

    form: Literal[2] = 2
    id: str
    split: str
    challenger: str
    challenger_sha256: str
    challenger_threshold: float
    champion: ChampionRef | None
    reference: ChampionRef | None = Field(None, description="the fixed champion that small losses are measured against")
    look: Look
    predictions: str
    judged: str
    counts: dict[str, str] = Field(description="role -> digest of its counts")
    challenger_metrics: Metrics
    champion_metrics: Metrics | None
    differences: dict[str, Interval] = Field(description="challenger minus champion, paired by patient")
    spreads: dict[str, Spread] = Field(default_factory=dict, description="of the differences that are shares of cells")
    reference_differences: dict[str, Interval] = Field(
        default_factory=dict, description="challenger minus reference, where that is not the champion itself"
    )
    unjudged: str = Field("", description="why patients with a name are not among the judging ones")
    other: str | None = Field(None, description="the candidate that is not the challenger; scored for the report only")
    other_metrics: Metrics | None = None
    milliseconds: dict[str, float] = Field(
        default_factory=dict, description="scoring time per image on this machine, by challenger, champion, other"
    )


class FieldNight(Record):
    """New patients of a night, scored by the deployed champion before anything was trained on them.

    Table ``table``: patient, tp, positives, tn, negatives. ``champion`` is the SHA-256 of its file.
    """

    kind: ClassVar[str] = "field"

    id: str
    champion: str
    split: str
    patients: int = Field(ge=0)
    table: str
    at: datetime


class FieldMonth(Record):
    """The patients of one month."""

    month: str
    patients: int
    sensitivity: float | None
    specificity: float | None


class FieldReport(Record):
    """What was promised of a champion, and what was found on patients that came after its training."""

    version: str
    patients: int
    cells: int
    promised: dict[str, Interval]
    found: dict[str, Interval]
    worse: tuple[str, ...] = Field((), description="rates that cannot be what was promised: the alarm")
    months: tuple[FieldMonth, ...] = ()

    @property
    def sentence(self) -> str:
        """Promised beside found, in one sentence."""
        rates = [
            f"{name.replace('_', ' ')} {self.promised[name].value:.3f} promised, {found.value:.3f} found"
            for name, found in self.found.items()
            if name in self.promised
        ]
        alarm = f": {' and '.join(self.worse)} cannot be what was promised" if self.worse else ""
        return f"Version {self.version} on {self.patients} patients since its training: {', '.join(rates)}{alarm}"


class Gate(Record):
    """One condition of a promotion, with its evidence."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    bound: float
    level: float | None
    passed: bool
    sentence: str


class Verdict(StrEnum):
    """How a night ends."""

    PROMOTED = "promoted"
    KEPT = "kept"
    UNDECIDED = "undecided"
    AWAITING_APPROVAL = "awaiting approval"
    CHAMPION_UNUSABLE = "champion unusable"
    NOTHING_NEW = "nothing new"
    INVALID_DATA = "invalid data"


class Decision(Record):
    """A verdict and its reasons. ``id`` is the digest of the evidence and the gate's settings."""

    kind: ClassVar[str] = "decisions"

    id: str
    verdict: Verdict
    sentence: Sentence
    snapshot: str
    validation: str
    split: str | None
    candidates: tuple[str, ...]
    failed_trainings: dict[str, str] = Field(description="model name -> why it ended without a model")
    challenger: str | None
    champion_before: ChampionRef | None
    tuning: dict[str, Metrics] = Field(
        default_factory=dict, description="challenger and champion on the same cells of tuning patients"
    )
    not_looked: str = Field(
        "", description="why a challenger that earned a look did not get one; the gates are then those of its best case"
    )
    evaluation: str | None
    gates: tuple[Gate, ...]
    further_patients: int | None = Field(description="for undecided: estimate of how many more would decide it")
    detectable_difference: float | None = Field(
        None, description="smallest true difference in balanced accuracy that tonight's patients detect with 80% power"
    )
    champion_problem: str | None = Field(None, description="why the champion could not be loaded or scored")
    synthetic: bool
    decided_at: datetime

    @model_validator(mode="before")
    @classmethod
    def _of_three_sides(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Read a decision of before there were folds: the history and the index still show it."""
        return {name: value for name, value in fields.items() if name not in ("generation", "champion_on_validation")}


class Promotion(Record):
    """One entry of the champion's history; entries are only ever added."""

    kind: ClassVar[str] = "history"

    number: int = Field(ge=1)
    action: Literal["promoted", "approved", "override", "rollback", "rebuilt"] = "promoted"
    who: str = Field("the nightly run", description="the run or the person that changed the champion")
    decision: str
    version_before: str | None
    version_after: str
    why: Sentence
    checked: str = Field("", description="how the model file was reproduced before it became champion")
    candidate: str | None = None
    model_sha256: str | None = None
    threshold: float | None = None
    evaluation: str | None = Field(None, description="what it rests on; None for a rollback or without an evaluation")
    evaluation_digest: str | None = None
    at: datetime


class ApprovalRequest(Record):
    """A challenger that passed every gate and waits for a person. Named by its decision."""

    kind: ClassVar[str] = "approvals"

    decision: str
    challenger: str
    champion: ChampionRef | None
    sentence: Sentence
    requested_at: datetime
    expires_at: datetime
    form_url: str | None = Field(None, description="address of the form on Prefect's page for the answer")


class ApprovalAnswer(Record):
    """A person's answer to an approval request, one per request. Named by its decision."""

    kind: ClassVar[str] = "answers"

    decision: str
    answer: Literal["approve", "reject"]
    who: str
    why: str
    at: datetime


class Start(Record):
    """The start of a night, with its champion: a killed night resumes against the same one."""

    kind: ClassVar[str] = "starts"

    id: str
    champion: ChampionRef | None
    started_at: datetime


class Night(Record):
    """One night from trigger to verdict; ``retrain run --json`` prints it."""

    kind: ClassVar[str] = "nights"

    id: str
    verdict: Verdict
    sentence: Sentence
    decision: str | None
    champion_before: str | None
    champion_after: str | None
    challenger: str | None
    challenger_model: str | None
    metrics: dict[str, Interval | None]
    judged: str = Field("", description="digest of the judged cells: nights that share it judged the same ones")
    images: dict[str, int]
    seconds: dict[str, float]
    report: str | None
    failed_trainings: dict[str, str] = Field(default_factory=dict, description="model name -> why it ended so tonight")
    unused_gpus: dict[str, str] = Field(
        default_factory=dict, description="model name -> why its framework did not use the GPU that it had"
    )
    field: FieldReport | None = Field(None, description="the champion before this night on patients new to it")
    synthetic: bool
    settings: dict[str, str] = Field(default_factory=dict, description="all settings, passwords masked")
    memory_mb: dict[str, float] = Field(default_factory=dict, description="peak memory of this process by stage")
    revision: str | None = Field(None, description="git revision of the code, where it ran from a checkout")
    hardware: str | None = Field(None, description="processor, cores and memory of the machine")
    versions: dict[str, str] = Field(default_factory=dict, description="Python and the libraries that judge and score")
    started_at: datetime
    finished_at: datetime


class PastNight(Record):
    """The metrics of the champion after a night, on patients it had not seen: a point of the trend."""

    decision: str
    at: datetime
    verdict: Verdict
    version: str | None
    model: str | None
    balanced_accuracy: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None


class Exhibits(Record):
    """The material of the report on the decision ``id``.

    Table ``cells`` (Parquet), in the order of display: gallery, key, sha256, patient, label (1 = Parasitized, -1
    unknown), challenger, champion, other (probabilities; NaN for none), note, side (pixels) and image (WebP, re-encoded
    from pixels; empty when none could be decoded).
    """

    kind: ClassVar[str] = "reports"

    form: Literal[2] = 2
    id: str
    cells: str
    counts: dict[str, int] = Field(description="total number of the cells of which a gallery shows a part")
    ledger: tuple[Look, ...]
    looks: int = Field(description="looks that share the error budget of a year")
    error_budget: float
    past: tuple[PastNight, ...]
    last_good: str | None = Field(None, description="the last decision before this one whose champion could be used")
    left_out: tuple[str, ...] = Field((), description="what could not be shown, and why")


class Retired(Record):
    """A decision whose report, pictures and tables were removed by the retention policy. Named by the decision.

    The decision, its night, its evaluation and its candidates stay as records. This one is written before anything is
    removed, so that nothing half-removed is used.
    """

    kind: ClassVar[str] = "retired"

    decision: str
    why: str
    at: datetime
