"""How long what is not needed any more is kept, on this machine, in the store and in the registry."""

from __future__ import annotations

from pydantic import Field

from validation.rules import Rules


class PruneSettings(Rules):
    """When what is removed (docs/operations.md, "What is removed, and when")."""

    automatic: bool = Field(True, description="prune at the end of every night, not only by `retrain prune`")
    cache_gb: float = Field(50.0, ge=0, description="fetched images on this machine; more: the oldest go")
    packs: int = Field(2, ge=1, description="packs that stay on this machine")
    scratch_days: float = Field(7.0, ge=0, description="work folders of trainings that failed or were killed")
    downloads_days: float = Field(30.0, ge=0, description="archives that an import downloaded")
    orphan_days: float = Field(30.0, ge=0, description="what nothing refers to, in the store and in the registry")
    models_days: float = Field(180.0, ge=0, description="model files of challengers that were never registered")
    models_nights: int = Field(30, ge=1, description="newest decisions whose model files stay, however old they are")
    reports_days: float = Field(730.0, ge=0, description="reports and tables of nights that registered no version")
    reports_nights: int = Field(365, ge=1, description="newest decisions whose reports stay, however old they are")
    runs_days: float = Field(90.0, ge=1, description="runs in the database of the Prefect server that we start")
