"""The rules of judgement, each with its default and meaning. ``infra.settings`` fills them in."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from validation.findings import CHECKS, REASONS
from validation.records import Severity

DEFAULT_PATIENT_PATTERN = r"(?i)(.*?)_?thin"


def one_group(pattern: str, named: str = "the patient") -> str:
    """Return a regular expression with exactly one group, which is what is ``named``; raises ValueError for others."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"must have exactly one group, {named}; it has {groups}")
    return pattern


class Rules(BaseModel):
    """Base of all groups of rules: immutable, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataRules(Rules):
    """What an image and a batch must be like to be trained on."""

    patient_pattern: Annotated[str, AfterValidator(one_group)] = Field(
        DEFAULT_PATIENT_PATTERN,
        description="regular expression, matched at the start of an image's name; its one group is the patient",
    )
    max_bytes: int = Field(20_000_000, gt=0, description="larger objects are not fetched")
    min_pixels: int = Field(16, gt=0, description="an image's width and height at least")
    max_pixels: int = Field(4_096, gt=0, validate_default=True, description="an image's width and height at most")
    max_aspect: float = Field(
        4.0, ge=1, description="an image's longer side over its shorter one at most; above it: odd aspect"
    )
    min_cell_share: float = Field(
        0.02, ge=0, le=1, description="share of the picture that is not black; below it: no cell"
    )
    min_contrast: float = Field(1.0, ge=0, description="standard deviation of a cell's grey values; below it: blank")
    max_edge_clipping: float = Field(
        0.7,
        gt=0,
        description="cell along one edge of the picture, over the side of a square of its area; above it: cell cut off",
    )
    min_cells_per_class: int = Field(50, ge=1, description="fewer accepted cells of a class: invalid data")
    min_patients_per_class: int = Field(5, ge=1, description="cells of a class from fewer patients: invalid data")
    max_class_ratio: float = Field(20.0, ge=1, description="larger class over smaller class; above it: invalid data")
    warn_class_ratio: float = Field(3.0, ge=1, description="larger class over smaller class; above it: a warning")
    max_rejected_share: float = Field(0.25, gt=0, le=1, description="share of rejected images; above it: invalid data")
    warn_rejected_share: float = Field(0.02, ge=0, le=1, description="share of rejected images; above it: a warning")
    night_images: int = Field(50, ge=1, description="new images from which a night is also checked on its own")
    warn_patient_share: float = Field(
        0.5, gt=0, le=1, description="one patient's share of a night's new images; above it: a warning"
    )
    warn_drift: float = Field(
        0.8,
        gt=0,
        description="standard deviations between patients by which a night may differ, with 95% confidence, from the "
        "champion's training images; above it: a warning",
    )
    severities: dict[str, Severity] = Field(
        default_factory=dict,
        description="what a finding or failed check costs, by name: `reject` the image, `warn`, or `stop` the night; "
        'JSON in the environment; in TOML `[data.severities]`, `"out of focus" = "reject"`. `retrain quarantine '
        "--reasons` lists the names",
    )

    @field_validator("severities")
    @classmethod
    def _are_known(cls, severities: dict[str, Severity]) -> dict[str, Severity]:
        for name, severity in severities.items():
            if name not in REASONS and name not in CHECKS:
                raise ValueError(
                    f"{name!r} is neither a reason nor a check; known are {', '.join([*REASONS, *CHECKS])}"
                )
            if severity == "warn" and name in REASONS and REASONS[name].unusable:
                raise ValueError(f"{name!r} leaves nothing to train on: it can reject or stop, not warn")
            if name in CHECKS and severity == "reject":
                raise ValueError(f"{name!r} is a check of the whole batch: it can warn or stop, not reject")
        return severities

    @field_validator("max_pixels")
    @classmethod
    def _leaves_a_size(cls, max_pixels: int, info: ValidationInfo) -> int:
        if info.data.get("min_pixels", 0) > max_pixels:
            raise ValueError(f"is below min_pixels, {info.data['min_pixels']}: no image could be accepted")
        return max_pixels


class GateRules(Rules):
    """When a challenger may become champion."""

    error_budget: float = Field(0.05, gt=0, lt=0.5, description="chance of any false promotion in a year")
    looks: int = Field(24, ge=1, description="looks in any 365 days that share the budget")
    sensitivity_margin: float = Field(0.01, ge=0, lt=1, description="largest accepted loss of sensitivity")
    specificity_margin: float = Field(0.01, ge=0, lt=1, description="largest accepted loss of specificity")
    reference: str | None = Field(
        None,
        min_length=1,
        description="registered version that no champion may be worse than by more than the margins; none: the first "
        "champion of the line",
    )
    min_auc: float = Field(0.90, ge=0, le=1, description="floor of the AUC's lower bound")
    min_sensitivity: float = Field(0.80, ge=0, le=1, description="floor of the sensitivity's lower bound")
    min_specificity: float = Field(0.80, ge=0, le=1, description="floor of the specificity's lower bound")
    min_patients: int = Field(8, ge=2, description="judging patients; fewer: undecided")
    min_cells_per_class: int = Field(25, ge=1, description="judging cells of each class; fewer: undecided")
    resamples: int = Field(10_000, ge=1_000, description="draws of patients for every interval")


class PromotionRules(Rules):
    """How a decision to promote is carried out."""

    approval: Literal["automatic", "person"] = Field(
        "automatic",
        description="`person`: a challenger that passes every gate waits for approval ([registry.md](registry.md))",
    )
    approval_hours: float = Field(72.0, gt=0, description="an unanswered approval request expires after this")
    tolerance: float = Field(
        0.0,
        ge=0,
        le=0.01,
        description="how far a probability may be off when a new champion is reproduced; 0: not by one bit",
    )
