"""Specifications of trainings, checked before anything runs."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from infra.settings.settings import Settings
from tasks.context import Context
from tasks.models import get_model
from validation.digest import digest
from validation.errors import SettingsError
from validation.records import Candidate, Member, TrainSpec

Made = TypeVar("Made", Member, Candidate)


def member_specs(settings: Settings, model: str, split_id: str) -> list[TrainSpec]:
    """Return everything that determines the members of ``model`` on a split, one specification for each.

    Raises:
        SettingsError: for an unknown model, or an unknown or invalid recipe setting.
    """
    module = get_model(model)
    try:
        recipe = module.DefaultRecipe(**settings.training.recipe(model))
    except ValidationError as error:
        lines = [f"setting training.{model}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        known = ", ".join(module.DefaultRecipe.model_fields)
        raise SettingsError("\n".join(lines), f"recipe settings of {model}: {known}") from None
    return [
        TrainSpec(
            model=model,
            member=member,
            split=split_id,
            side=settings.training.side,
            seed=settings.training.seed,
            recipe=recipe.model_dump(mode="json"),
            recipe_version=module.RECIPE_VERSION,
        )
        for member in range(settings.training.members)
    ]


def find_member(context: Context, spec: TrainSpec) -> tuple[str, Member | None]:
    """Return the id of the member of ``spec``, and the member if it has been trained already.

    If its file was pruned, its record stays for the reports: trained again it gets another id.
    """
    return find_with_file(context, Member, digest(spec.model_dump(mode="json")))


def find_with_file(context: Context, kind: type[Made], id_: str) -> tuple[str, Made | None]:
    """Return the first of the ids that follow from ``id_`` whose record has its file, or that has no record."""
    while (stored := context.records.find(kind, id_)) is not None:
        if context.store.exists(stored.model_key):
            return id_, stored
        id_ = digest(id_, "again")
    return id_, None
