"""Why a bucket's server refuses: its own code and words, and what to do about it. Pure text; imports no client."""

from __future__ import annotations

import html
import re
from http import HTTPStatus
from typing import NamedTuple

_REGION = "the bucket is in another region: set RETRAIN_STORE_REGION or AWS_REGION"
_ARCHIVED = "the object is archived: restore it, and exempt labeled/ from the lifecycle rule that archives it"
_EXPIRED = "sign in again (`aws sso login`), or give a new AWS_SESSION_TOKEN; a role renews its own"
_KEY = "the identity needs kms:Decrypt and kms:GenerateDataKey on the bucket's key, and the key has to be enabled"
_OTHER_KEY = "are these credentials of this server (AWS_PROFILE, AWS_ACCESS_KEY_ID; RETRAIN_STORE_ENDPOINT)?"
_POLICY = "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...), and what the bucket's policy lets them do"

# S3's codes, and Azure's and Google's where they differ.
_HINTS = {
    **dict.fromkeys(("InvalidObjectState", "BlobArchived"), _ARCHIVED),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    "InvalidToken": "AWS_SESSION_TOKEN is not of this AWS_ACCESS_KEY_ID: set both anew, or neither",
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"), _OTHER_KEY),
    "SignatureDoesNotMatch": "is AWS_SECRET_ACCESS_KEY that of AWS_ACCESS_KEY_ID? or does a proxy change requests?",
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"), _REGION
    ),
    "RequestTimeTooSkewed": "set this machine's clock",
    **dict.fromkeys(("AllAccessDisabled", "AccountProblem", "AccountIsDisabled"), "ask who pays for the account"),
    **dict.fromkeys(("XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"), "the server is full: make room"),
    **dict.fromkeys(("AuthenticationFailed", "NoAuthenticationInformation", "InvalidAuthenticationInfo"),
                    "check AZURE_STORAGE_ACCOUNT_KEY, or that AZURE_STORAGE_SAS_TOKEN has not expired"),
    "AuthorizationFailure": "the account's firewall keeps this machine out, or the identity has no role there",
}  # fmt: skip
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")
_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z ]*)")


class Refusal(NamedTuple):
    """What a server answered instead of doing as it was asked: its code and words, and the status of HTTP."""

    code: str
    message: str
    status: int = 0

    def __str__(self) -> str:
        return f"{self.code} {self.message}".strip() or "without a word"

    @property
    def is_of_the_server(self) -> bool:
        """Whether the server itself is at fault, and not what it was asked."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def hint(self, region: str = "") -> str:
        """Return what to do; ``region`` is where the server says that the bucket is."""
        if self.is_of_the_server and self.code not in _HINTS:
            return "try again later, or correct RETRAIN_STORE_ENDPOINT if it is not an S3 API (a web console?)"
        found = _EXPECTED_REGION.search(self.message)
        if _HINTS.get(self.code) == _REGION and (region := region or (found[1] if found else "")):
            return f"the bucket is in another region: set RETRAIN_STORE_REGION={region}"
        # S3 says AccessDenied also where it was the key's policy that denied.
        if self.code.lower().startswith("kms") or "kms:" in self.message.lower():
            return _KEY
        return _HINTS.get(self.code, _POLICY)


def refusal_in(text: str) -> Refusal | None:
    """Return the refusal that an error's text quotes, in the XML of S3, Azure and Google, or None: no answer at all."""
    if "redirect without LOCATION" in text:
        return Refusal("PermanentRedirect", "", HTTPStatus.MOVED_PERMANENTLY)
    status = _STATUS.search(text)
    if status is None:
        return None
    code, message = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
    # Azure's message goes on with the request's id and time.
    words = html.unescape(message[1]).strip().splitlines() if message else []
    said = html.unescape(code[1]).strip() if code else " ".join(filter(None, (status[1], status[2].strip())))
    return Refusal(said, words[0][:300] if words else "", int(status[1]))
