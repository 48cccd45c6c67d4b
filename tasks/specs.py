"""What a training is asked for, checked before anything runs."""

from __future__ import annotations

from pydantic import ValidationError

from infra.settings import Settings
from tasks.models import get_model
from validation.errors import SettingsError
from validation.records import TrainSpec


def train_spec(settings: Settings, model: str, split_id: str) -> TrainSpec:
    """Return all that decides what a training of ``model`` on a split makes.

    Raises:
        SettingsError: for an unknown model, or a recipe setting that is unknown or impossible.
    """
    module = get_model(model)
    try:
        recipe = module.DefaultRecipe(**settings.training.recipe(model))
    except ValidationError as error:
        lines = [f"setting training.{model}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        known = ", ".join(module.DefaultRecipe.model_fields)
        raise SettingsError("\n".join(lines), f"recipe settings of {model}: {known}") from None
    return TrainSpec(
        model=model,
        split=split_id,
        side=settings.training.side,
        seed=settings.training.seed,
        recipe=recipe.model_dump(mode="json"),
        recipe_version=module.RECIPE_VERSION,
        target_sensitivity=settings.training.target_sensitivity,
    )
