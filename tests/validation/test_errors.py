"""Errors for a person: one tree, as its module draws it, whole after a journey between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from validation import errors
from validation.errors import RetrainError

CLASSES: dict[str, type[RetrainError]] = {name: getattr(errors, name) for name in errors.__all__}


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """Name -> (parent, exit code) as the module's docstring draws it."""
    found: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"( {4}[ │├└─]*)([A-Z]\w+) +(?:exit (\d))?", line)
        if match is None:
            continue
        depth = len(match[1])
        above = [(d, name) for d, name in above if d < depth]
        found[match[2]] = (above[-1][1] if above else None, int(match[3]) if match[3] else None)
        above.append((depth, match[2]))
    return found


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = drawn_tree()
    assert set(drawn) == set(CLASSES)
    for name, (parent, code) in drawn.items():
        base = CLASSES[name].__bases__[0]
        assert base.__name__ == (parent or "Exception")
        # Where the drawing names no code, the parent's holds.
        assert CLASSES[name].exit_code == (code if code is not None else CLASSES[str(parent)].exit_code)


def test_every_public_error_is_in_all() -> None:
    defined = {name for name, value in inspect.getmembers(errors, inspect.isclass) if not name.startswith("_")}
    assert defined == set(errors.__all__)
    assert list(errors.__all__) == sorted(errors.__all__)


def test_exit_codes_tell_the_kinds_apart() -> None:
    codes = {name: error.exit_code for name, error in CLASSES.items() if error.exit_code != 1}
    assert codes == {
        "UsageError": 2,
        "SettingsError": 2,
        "DataInvalid": 3,
        "Unreachable": 4,
        "StoreUnreachable": 4,
        "RegistryUnreachable": 4,
    }


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("hint", ["", "start it with `retrain run`"])
def test_an_error_survives_pickling_whole(name: str, hint: str) -> None:
    error = CLASSES[name]("expected a model, found none in s3://cells", hint)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is CLASSES[name]
        assert (again.message, again.hint, again.exit_code) == (error.message, hint, error.exit_code)
        assert str(again) == str(error)


def test_a_message_is_printed_alone_or_above_its_hint() -> None:
    assert str(RetrainError("no champion yet")) == "no champion yet"
    assert str(RetrainError("no champion yet", "run a night first")) == "no champion yet\n  run a night first"


def test_a_caller_can_catch_a_kind_of_error() -> None:
    with pytest.raises(errors.Unreachable, match="does not answer"):
        raise errors.StoreUnreachable("the store does not answer")
    with pytest.raises(RetrainError):
        raise errors.ChampionChanged("another version is champion")
