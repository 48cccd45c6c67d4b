"""Our own reading of listing pages says what boto3's parser says, or leaves the page to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store.base import ObjectInfo
from infra.store.s3_listing import _parse, _take_entries, objects_of

pytestmark = pytest.mark.thorough

HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


def page(entries: str, *, url: bool = False) -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if url else ""
    return f"{HEAD}{encoding}<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def as_boto3_reads(body: bytes) -> list[ObjectInfo]:
    """Return what botocore's own parser and its handler for encoded keys make of a page."""
    import botocore.session
    from botocore.handlers import decode_list_object_v2
    from botocore.parsers import create_parser

    model = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2")
    assert model.output_shape is not None
    answer = {"status_code": 200, "headers": {}, "body": body}
    parsed = create_parser("rest-xml").parse(answer, model.output_shape)
    decode_list_object_v2(parsed, {"encoding_type_auto_set": True})
    return list(objects_of(parsed))


def entry(key: str, etag: str = "&quot;abc&quot;") -> str:
    return f"<Contents><Key>{key}</Key><Size>12</Size><ETag>{etag}</ETag><StorageClass>S</StorageClass></Contents>"


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize(
    "entries",
    [
        "",
        entry("labeled/A/x.png") + entry("labeled/A/y.png", '"abc-2"'),
        entry("a%2Fb+c%2Bd%20e%25") + entry("a&amp;b&lt;c") + entry("ä漢"),
        entry("x", "&#34;abc&#34;").replace("><", ">\n  <"),
        "<Contents><Size>3</Size><ETag>abc</ETag><Owner><ID>me</ID></Owner><Key>k</Key></Contents>",
    ],
)
def test_pages_are_read_as_boto3_reads_them(entries: str, url: bool) -> None:
    body = page(entries, url=url)
    assert _parse(body) == as_boto3_reads(body)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_encoded_key_comes_back(key: str) -> None:
    from urllib.parse import quote_plus

    assert _parse(page(entry(quote_plus(key)), url=True)) == [ObjectInfo(key, 12, "abc")]


@pytest.mark.parametrize(
    "entries",
    [
        entry("a&#13;b"),
        entry("<![CDATA[a]]>"),
        entry("x") + '<Contents xmlns="y"><Key>z</Key></Contents>',
        "<Contents><Key>x</Key><Size>1</Size></Contents>",
        "<!-- " + entry("x") + " -->",
    ],
)
def test_an_unusual_page_is_left_to_boto3(entries: str) -> None:
    answer: dict[str, Any] = {"status_code": 200, "body": page(entries)}
    taken: dict[str, Any] = {}
    _take_entries(answer, taken)
    assert taken == {}
    assert answer["body"] == page(entries)
