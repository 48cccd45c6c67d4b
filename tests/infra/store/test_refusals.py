"""Why a server refuses, in its own words, and what to do: told of every kind, at every call that has words."""

from __future__ import annotations

import pytest

from infra.store.opening import open_store
from infra.store.refusals import Refusal, refusal_in
from tests.infra.store.test_s3 import CALLS, Answer, answering, refusals
from validation.errors import StoreUnreachable
from validation.redaction import register_secret

__all__ = ["answering"]

KMS = "User: arn:aws:iam::1:user/night is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu:1:key/2"


def xml(code: str, message: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()


@pytest.mark.server
@pytest.mark.usefixtures("fake_aws")
@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (403, "InvalidObjectState", "The operation is not valid for the object's storage class", "exempt labeled/"),
        (403, "AccessDenied", KMS, "kms:Decrypt and kms:GenerateDataKey"),
        (400, "KMS.DisabledException", "The key is disabled.", "the key has to be enabled"),
        (400, "ExpiredToken", "The provided token has expired.", "aws sso login"),
        (400, "InvalidToken", "The provided token is malformed or otherwise invalid.", "AWS_SESSION_TOKEN"),
        (403, "InvalidAccessKeyId", "The key does not exist in our records.", "are these credentials of this server"),
        (403, "SignatureDoesNotMatch", "The signature does not match.", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "Access Denied", "the bucket's policy"),
        (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'eu-west-1'", "REGION=eu-west-1"),
        (403, "RequestTimeTooSkewed", "The difference is too large.", "clock"),
    ],
)
def test_code_and_message_are_told_with_what_to_do(
    status: int, code: str, message: str, hint: str, answering: Answer
) -> None:
    answering.status, answering.body = status, xml(code, message)
    for name, error in refusals(open_store("s3://cells", endpoint=answering.url)).items():
        assert "refused" in error.message, name
        if name == "exists":  # HEAD has no body with a reason
            assert str(status) in error.message
            continue
        assert f"{code} {message}" in error.message, name
        assert hint in error.hint, name


@pytest.mark.server
@pytest.mark.usefixtures("fake_aws")
def test_a_secret_that_a_server_repeats_is_masked(answering: Answer) -> None:
    register_secret("a-session-token")
    answering.status, answering.body = 400, xml("ExpiredToken", "a-session-token has expired, password=mine-alone")
    for error in refusals(open_store("s3://cells", endpoint=answering.url)).values():
        assert "a-session-token" not in str(error)
        assert "mine-alone" not in str(error)


@pytest.mark.server
@pytest.mark.usefixtures("no_aws")
def test_a_session_that_cannot_be_renewed_is_told_as_that(
    answering: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", answering.url)
    answering.status, answering.body = 400, b'{"code": "gone", "message": "no role is attached"}'
    with pytest.raises(StoreUnreachable, match="cannot sign in to s3://cells") as caught:
        open_store("s3://cells", endpoint=answering.url).check()
    assert "no role is attached" in caught.value.message
    assert "aws sso login" in caught.value.hint


@pytest.mark.server
def test_azure_says_why(answering: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCOUNT_NAME", "cells"), ("ACCOUNT_KEY", "c2VjcmV0"), ("ENDPOINT", f"{answering.url}/cells")):
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    message = "This operation is not permitted on an archived blob.\nRequestId:1\nTime:2026-01-01T00:00:00Z"
    answering.status, answering.body = 409, xml("BlobArchived", message)
    with pytest.raises(StoreUnreachable, match=r"BlobArchived This operation .* archived blob\.\n") as caught:
        CALLS["get"](open_store("az://container"))
    assert "exempt labeled/" in caught.value.hint


def test_an_error_without_an_answer_is_no_refusal() -> None:
    assert refusal_in("Generic S3 error: HTTP error: error sending request") is None
    assert refusal_in("Server returned non-2xx status code: 403 Forbidden: ") == Refusal("403 Forbidden", "", 403)
    assert "region" in (refusal_in("Received redirect without LOCATION, ...") or Refusal("", "")).hint()
    assert "try again later" in Refusal("SlowDown", "Please reduce your request rate.", 503).hint()
