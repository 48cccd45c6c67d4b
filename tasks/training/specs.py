"""Specifications of trainings, checked before anything runs."""

from __future__ import annotations

from pydantic import ValidationError

from infra.settings.settings import Settings
from tasks.context import Context
from tasks.models import get_model
from validation.digest import digest
from validation.errors import SettingsError
from validation.records import Candidate, TrainSpec


def train_spec(settings: Settings, model: str, split_id: str, earlier: Candidate | None = None) -> TrainSpec:
    """Return everything that determines the candidate of a training of ``model`` on a split.

    It starts from the weights of ``earlier`` if they fit: the same network, for cells of the same size.

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
    fits = earlier is not None and (
        (earlier.spec.model, earlier.spec.side, earlier.spec.recipe_version)
        == (model, settings.training.side, module.RECIPE_VERSION)
        and all(earlier.spec.recipe.get(name) == getattr(recipe, name) for name in module.SHAPE)
    )
    return TrainSpec(
        model=model,
        split=split_id,
        side=settings.training.side,
        seed=settings.training.seed,
        recipe=recipe.model_dump(mode="json"),
        recipe_version=module.RECIPE_VERSION,
        target_sensitivity=settings.training.target_sensitivity,
        start=earlier.id if earlier and fits else None,
    )


def find_candidate(context: Context, spec: TrainSpec) -> tuple[str, Candidate | None]:
    """Return the id of the candidate of ``spec``, and the candidate if it has been trained already.

    If its model file was pruned, its record stays for the reports: trained again it gets another id.
    """
    id_ = digest(spec.model_dump(mode="json"))
    while (stored := context.records.find(Candidate, id_)) is not None:
        if context.store.exists(stored.model_key):
            return id_, stored
        id_ = digest(id_, "again")
    return id_, None
