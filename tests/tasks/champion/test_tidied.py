"""MLflow tidied by hand, or moved: what can be restored is, what cannot is named, and a rollback works all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from infra.registry.registry import LEDGER_TAG, Registry
from infra.settings.settings import Settings, load_settings
from infra.store.base import ObjectInfo
from infra.store.keys import CHAMPION_ALIAS, MODEL_NAME
from tasks.champion.history import current_champion, history, reconcile_champion
from tasks.commands.rebuild_registry import rebuild_registry
from tasks.commands.rollback import rollback
from tasks.context import Context
from tests.builders import channel_model, context_over, made_up_candidate, registry_in
from tests.tasks.commands.test_rollback import decide, line_of_champions
from validation.errors import ChampionUnusable, ModelFileInvalid, ObjectMissing, RetrainError, UsageError
from validation.records import Candidate, ChampionRef

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here", "evidence_believed")]

Break = Callable[[Any], None]


@pytest.fixture
def champions(context: Context, registry: Registry) -> list[ChampionRef]:
    """Two champions, one after the other."""
    return line_of_champions(context, registry, 2)


def delete_ledger(client: Any) -> None:
    client.delete_run(client.get_registered_model(MODEL_NAME).tags[LEDGER_TAG])


def delete_experiment(client: Any) -> None:
    client.delete_experiment(client.get_experiment_by_name("nightly").experiment_id)


def delete_ledger_tag(client: Any) -> None:
    client.delete_registered_model_tag(MODEL_NAME, LEDGER_TAG)


def delete_ledger_and_its_tag(client: Any) -> None:
    delete_ledger(client)
    delete_ledger_tag(client)


def delete_tags(client: Any) -> None:
    for name in ("threshold", "candidate", "model"):
        client.delete_model_version_tag(MODEL_NAME, "2", name)


def garble_a_tag(client: Any) -> None:
    client.set_model_version_tag(MODEL_NAME, "2", "threshold", "a half")


@pytest.mark.parametrize(
    "tidy",
    [delete_ledger, delete_experiment, delete_ledger_tag, delete_ledger_and_its_tag, delete_tags, garble_a_tag],
)
def test_what_was_deleted_in_mlflow_and_can_be_restored_is(
    tidy: Break, context: Context, registry: Registry, champions: list[ChampionRef], caplog: pytest.LogCaptureFixture
) -> None:
    entries = registry.entries_with_prefix("history.")
    tidy(registry._client)
    found = reconcile_champion(context, registry)
    assert found is not None
    assert found.model_copy(update={"since": None}) == champions[1].model_copy(update={"since": None})
    assert registry.entries_with_prefix("history.") == entries
    assert "restored" in caplog.text or "again" in caplog.text
    # Everything can be written again, and no second history has begun.
    assert rollback(context, registry, None, why="to see", who="ann@lab").version == "1"
    assert list(registry.entries_with_prefix("history.")) == ["000001", "000002", "000003"]


def test_unreadable_tags_are_named_where_nothing_may_be_written(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    del champions
    garble_a_tag(registry._client)
    with pytest.raises(ChampionUnusable, match=r"version 2 .* has other tags in MLflow") as caught:
        current_champion(context, registry)
    assert "writes those of the champion again" in caught.value.hint


def test_a_renamed_model_is_named_with_the_way_back(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    client = registry._client
    client.rename_registered_model(MODEL_NAME, "Malaria 2026")
    with pytest.raises(RetrainError, match="is called Malaria 2026") as caught:
        reconcile_champion(context, registry)
    assert f"rename_registered_model('Malaria 2026', '{MODEL_NAME}')" in caught.value.hint
    client.rename_registered_model("Malaria 2026", MODEL_NAME)
    assert reconcile_champion(context, registry) == champions[1]


def test_a_model_that_another_machine_creates_meanwhile_is_not_a_renamed_one(
    registry: Registry, champions: list[ChampionRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one was asked for the model just before the other's first promotion made it."""
    entries = registry.entries_with_prefix("history.")
    with monkeypatch.context() as earlier:
        earlier.setattr(registry._client, "get_registered_model", not_yet)
        assert registry.entries_with_prefix("history.") == entries


def test_a_change_that_another_machine_decides_while_the_history_is_read_is_no_intruder(
    context: Context, registry: Registry, champions: list[ChampionRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    del champions
    listed, meanwhile = context.store.list, list[ChampionRef]()

    def listed_before(prefix: str) -> Iterator[ObjectInfo]:
        found = list(listed(prefix))
        if prefix.endswith("/history/") and not meanwhile:
            meanwhile.append(rollback_elsewhere())
        return iter(found)

    def rollback_elsewhere() -> ChampionRef:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(context.store, "list", listed)
            return rollback(context, registry, None, why="to see", who="ann@lab")

    monkeypatch.setattr(context.store, "list", listed_before)
    assert reconcile_champion(context, registry) == meanwhile[0]
    assert meanwhile[0].version == "1"


def not_yet(name: str) -> None:
    raise MlflowException(f"no {name}", error_code=RESOURCE_DOES_NOT_EXIST)


def test_when_the_champions_version_is_deleted_a_rollback_works_and_says_so(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    registry._client.delete_model_version(MODEL_NAME, "2")
    for ask in (reconcile_champion, current_champion):
        with pytest.raises(ChampionUnusable, match="version 2 is champion, but: no version 2") as caught:
            ask(context, registry)
        assert "retrain rollback N --why" in caught.value.hint
        assert "N: 1" in caught.value.hint
    with pytest.raises(UsageError, match="is champion already"):
        rollback(context, registry, "2", why="it is gone", who="ann@lab")
    assert rollback(context, registry, None, why="it is gone", who="ann@lab") == champions[0]
    last = history(context)[-1]
    assert (last.action, last.version_before, last.version_after) == ("rollback", "2", "1")
    assert "no version 2" in last.checked
    assert reconcile_champion(context, registry) == champions[0] == registry.champion()


def test_an_empty_registry_is_not_one_without_a_champion(
    context: Context, registry: Registry, champions: list[ChampionRef], home: Path, empty_registry: Path
) -> None:
    """The history of the store stays, and nothing asks for its removal."""
    del registry, champions
    shutil.copy(empty_registry, home / "mlflow.db")
    empty = Registry(Settings(home=home))
    for ask in (reconcile_champion, current_champion):
        with pytest.raises(ChampionUnusable, match="version 2 is champion, but") as caught:
            ask(context, empty)
        assert "restore the registry from a backup" in caught.value.hint
        assert "move" not in caught.value.hint
    assert len(history(context)) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_lost_registry_is_made_again_on_a_persons_word(
    killed: bool,
    context: Context,
    registry: Registry,
    champions: list[ChampionRef],
    home: Path,
    empty_registry: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = champions[0]
    del registry
    shutil.copy(empty_registry, home / "mlflow.db")
    shutil.rmtree(home / "mlflow-artifacts")
    before = {info.key for info in context.store.list("retraining/history/")}
    empty = Registry(Settings(home=home))
    for named, why in (("0" * 64, "what else"), ("", "what else")):
        with pytest.raises(UsageError, match="ends with a file of SHA-256"):
            rebuild_registry(context, empty, named, why=why, who="ann@lab")
    assert empty.version_numbers() == []
    sha256 = champions[1].model_sha256
    if killed:
        monkeypatch.setattr(empty, "register", _interrupted_after(empty.register))
        with pytest.raises(KeyboardInterrupt):
            rebuild_registry(context, empty, sha256[:12], why="the disk was lost", who="ann@lab")
        empty = Registry(Settings(home=home))
    champion = rebuild_registry(context, empty, sha256[:12], why="the disk was lost", who="ann@lab")
    assert (champion.version, champion.model_sha256, champion.threshold) == (
        "2", champions[1].model_sha256, champions[1].threshold,
    )  # fmt: skip
    assert reconcile_champion(context, empty) == champion == empty.champion()
    assert empty.model_bytes(empty.version("1")) == context.store.get(candidate_key_of(context, first))
    last = history(context)[-1]
    assert (last.number, last.action, last.who, last.why) == (3, "rebuilt", "ann@lab", "the disk was lost")
    assert before < {info.key for info in context.store.list("retraining/history/")}
    with pytest.raises(UsageError, match="it is not lost"):
        rebuild_registry(context, empty, sha256, why="once more", who="ann@lab")
    # The line of champions goes on where it was.
    assert rollback(context, empty, None, why="to see", who="ann@lab").version == "1"


def _interrupted_after(call: Callable[..., Any]) -> Callable[..., Any]:
    def once(*arguments: Any) -> Any:
        call(*arguments)
        raise KeyboardInterrupt

    return once


def candidate_key_of(context: Context, champion: ChampionRef) -> str:
    return context.records.load(Candidate, champion.candidate).model_key


def test_what_was_never_champion_or_is_gone_is_not_had_again_and_keeps_its_number(
    context: Context, registry: Registry, champions: list[ChampionRef], home: Path, empty_registry: Path
) -> None:
    context.store.delete(candidate_key_of(context, champions[0]))
    shutil.copy(empty_registry, home / "mlflow.db")
    empty = Registry(Settings(home=home))
    rebuild_registry(context, empty, champions[1].model_sha256, why="the disk was lost", who="ann@lab")
    assert empty.version_numbers() == ["2"]
    with pytest.raises(UsageError, match="no version 1"):
        rollback(context, empty, "1", why="to see", who="ann@lab")
    # Without the champion's own file there is nothing to go on with.
    shutil.copy(empty_registry, home / "mlflow.db")
    context.store.delete(candidate_key_of(context, champions[1]))
    with pytest.raises(ObjectMissing):
        rebuild_registry(context, Registry(Settings(home=home)), champions[1].model_sha256, why="x", who="ann@lab")


def test_the_alias_removed_by_hand_comes_back(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    registry._client.delete_registered_model_alias(MODEL_NAME, CHAMPION_ALIAS)
    assert reconcile_champion(context, registry) == champions[1]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_folder_may_be_moved_or_copied(
    how: str,
    home: Path,
    tmp_path: Path,
    empty_registry: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry, model = registry_in(home, empty_registry), channel_model()
    context = context_over(Context.open(Settings(home=home)).store, home)
    champion = registry.register(made_up_candidate(model), model, decide(context, 1, None))
    registry.set_champion(champion.version)
    new = tmp_path / "elsewhere" / "home"
    if how == "moved":
        new.parent.mkdir()
        home.rename(new)
    else:
        shutil.copytree(home, new)
        shutil.rmtree(home / "mlflow-artifacts" / "models")  # or the copy would read the original's
    monkeypatch.setenv("RETRAIN_HOME", str(new))
    there = Registry(load_settings())
    assert there.champion() == champion
    assert there.model_bytes(champion) == model
    assert f"were moved from {(home / 'mlflow-artifacts').as_uri()}" in caplog.text
    other = channel_model(centre=99)
    second = there.register(made_up_candidate(other, id_="e" * 24), other, decide(context, 2, champion))
    assert there.model_bytes(second) == other
    assert len(list((new / "mlflow-artifacts" / "models").glob("*/artifacts/*.onnx"))) == 2
    # Only once.
    caplog.clear()
    assert Registry(load_settings()).model_bytes(second) == other
    assert "were moved" not in caplog.text


def test_files_that_are_nowhere_are_missing_and_not_tampered_with(home: Path, empty_registry: Path) -> None:
    registry, model = registry_in(home, empty_registry), channel_model()
    context = context_over(Context.open(Settings(home=home)).store, home)
    champion = registry.register(made_up_candidate(model), model, decide(context, 1, None))
    (home / "mlflow-artifacts").rename(home / "away")
    with pytest.raises(ModelFileInvalid, match="nothing lies where MLflow has the file of version 1") as caught:
        Registry(Settings(home=home)).model_bytes(champion)
    assert str(home / "mlflow-artifacts") in caught.value.message
    assert "was the folder moved" in caught.value.hint
