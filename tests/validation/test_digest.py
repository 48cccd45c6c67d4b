"""Digests name what is stored: the same content must have the same name on every machine, and no other content."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.digest import DIGEST_LENGTH, canonical_json, digest, sha256

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
steady = settings(deadline=None, derandomize=True, max_examples=150)


def test_a_name_is_what_it_always_was() -> None:
    # Records of earlier nights are found by this name: another one would train everything again.
    assert digest("g1", {"b": [1, 2.5, None], "a": "ä"}, b"raw") == "cf1488c29dda47b8038f3daa"
    assert len(digest()) == DIGEST_LENGTH == 24


def test_sha256_is_the_one_that_other_tools_print() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_order_of_names_does_not_matter_that_of_items_does() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest("a", "b") != digest("b", "a")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        ((b"ab", b"c"), (b"a", b"bc")),
        ((b"1:a",), (b"a",)),
        ((["a"], "b"), (["a", "b"],)),
        (("1",), (1,)),
        ((None,), ("None",)),
        ((), ("",)),
        (("a", ""), ("a",)),
        ((1,), (True,)),
    ],
)
def test_other_parts_have_another_name(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert digest(*one) != digest(*other)


@steady
@given(JSON)
def test_canonical_json_keeps_the_value_and_is_plain_ascii(value: Any) -> None:
    text = canonical_json(value)
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"loss": value})
