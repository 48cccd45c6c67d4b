"""An S3 bucket, on AWS or any compatible endpoint, with boto3's own identity (profiles, roles, SSO).

boto3 provides the identity, lists, and handles odd keys (``..``, control characters), which obstore refuses; obstore
moves the bytes with boto3's credentials.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from infra.settings.groups import WireSettings
from infra.store.base import Fetched, ObjectInfo, missing
from infra.store.keys import is_odd
from infra.store.obstore import PRIVATE_CA, ObstoreStore, WrongBytes, first_line, wire_options
from infra.store.refusals import Refusal
from infra.store.s3_listing import objects_of, read_fast
from validation.errors import ObjectMissing, SettingsError, StoreUnreachable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

log = logging.getLogger(__name__)

SIGN_IN = "check AWS_PROFILE and ~/.aws; a session that has expired is renewed by `aws sso login`"
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3Store(ObstoreStore):
    """An S3 bucket, on AWS or any compatible endpoint."""

    def __init__(
        self, uri: str, *, endpoint: str | None = None, region: str | None = None, wire: WireSettings | None = None
    ) -> None:
        parts = urlsplit(uri)
        self.uri = uri
        self.wire = wire or WireSettings()
        self.bucket = parts.netloc
        self.prefix = unquote(parts.path).strip("/")
        # Until the server says otherwise (encryption with its own or the customer's key).
        self._etags_are_md5 = self.wire.md5_etags
        if not self.bucket or (self.prefix and is_odd(self.prefix)):
            raise SettingsError(
                f"store {uri!r} names no bucket or an invalid prefix", "expected s3://BUCKET or s3://BUCKET/PREFIX"
            )
        with _identity_errors(uri):
            self._connect(endpoint, region)

    def _connect(self, endpoint: str | None, region: str | None) -> None:
        import boto3
        import obstore.store
        from botocore.config import Config
        from botocore.exceptions import NoCredentialsError
        from obstore.auth.boto3 import Boto3CredentialProvider

        # Below warnings they log signatures and tokens.
        for name in ("botocore", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)
        session = boto3.Session(region_name=region)
        if session.get_credentials() is None:
            raise NoCredentialsError
        region = session.region_name or "us-east-1"
        self._client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            config=Config(
                # Since 1.36 boto3 sends new checksums by default, which several S3-compatible servers refuse.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # Three attempts of 3 s: an absent store is detected within about 12 s.
                retries={"total_max_attempts": 3, "mode": "standard"},
                connect_timeout=3,
                read_timeout=self.wire.silence_seconds,
                max_pool_connections=32,
            ),
        )
        read_fast(self._client)
        options: dict[str, Any] = {"region": region}
        # Not only the argument: boto3 also takes an endpoint from AWS_ENDPOINT_URL_S3 or the profile.
        if not urlsplit(self._client.meta.endpoint_url).netloc.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options |= {"endpoint": self._client.meta.endpoint_url, "virtual_hosted_style_request": False}
        self._data = obstore.store.S3Store(
            self.bucket,
            prefix=self.prefix or None,
            credential_provider=Boto3CredentialProvider(session),
            **wire_options(self.wire, **_private_ca(session)),
            **options,
        )

    def check(self) -> None:
        """List one key, which needs the same endpoint, identity and permissions as a night."""
        self._boto(lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._full("labeled/"), MaxKeys=1))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(prefix))
        )
        skip = len(self._full(""))
        while (page := self._boto(lambda: next(pages, None))) is not None:
            for listed in objects_of(page):
                yield ObjectInfo(listed.key[skip:], listed.size, listed.etag) if skip else listed

    def fetch(self, key: str) -> Fetched:
        """Return an object's bytes and ETag; where the ETag is an MD5, it is compared with the bytes."""

        def read() -> Fetched:
            fetched = self._fetch_odd(key) if is_odd(key) else super(S3Store, self).fetch(key)
            self._verify(key, fetched)
            return fetched

        return self._again(read)

    def _fetch_odd(self, key: str) -> Fetched:
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        try:
            answer = self._boto(lambda: self._client.get_object(Bucket=self.bucket, Key=self._full(key)), key)
            return Fetched(answer["Body"].read(), answer["ETag"].strip('"'))
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            # boto3 retries a request, but not a body that breaks off.
            raise WrongBytes(
                f"{self.uri} returned a part of {key!r}: {first_line(error)}", "try again later"
            ) from error

    def _verify(self, key: str, fetched: Fetched) -> None:
        if not self._etags_are_md5 or not _MD5.fullmatch(fetched.etag):
            return  # uploaded in parts, or a server with other ETags
        md5 = hashlib.md5(fetched.data, usedforsecurity=False).hexdigest()
        if md5 == fetched.etag:
            return
        head = self._boto(lambda: self._client.head_object(Bucket=self.bucket, Key=self._full(key)), key)
        if "kms" in head.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in head:
            log.info("%s encrypts with keys: its ETags are not MD5s, and are not compared", self.uri)
            self._etags_are_md5 = False
            return
        raise WrongBytes(
            f"{self.uri} gave other bytes of {key!r} than its ETag names: MD5 {md5} instead of {fetched.etag}",
            "a proxy changes the bytes, or the object is damaged in the store; "
            "for a server whose ETags are never MD5s set RETRAIN_WIRE__MD5_ETAGS=false",
        )

    def stat(self, key: str) -> ObjectInfo | None:
        """List the key: on some servers a HEAD gives another ETag (objects in parts)."""
        full = self._full(key)
        page = self._boto(lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1))
        # Of all keys with this prefix, the key itself comes first.
        first = next(objects_of(page), None)
        return ObjectInfo(key, first.size, first.etag) if first and first.key == full else None

    def exists(self, key: str) -> bool:
        if not is_odd(key):
            return super().exists(key)
        try:
            self._boto(lambda: self._client.head_object(Bucket=self.bucket, Key=self._full(key)), key)
        except ObjectMissing:
            return False
        return True

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _boto(self, call: Callable[[], T], key: str | None = None) -> T:
        from botocore.exceptions import BotoCoreError, ClientError, SSLError

        try:
            return call()
        except ClientError as error:
            code, message = (str(error.response.get("Error", {}).get(field, "")) for field in ("Code", "Message"))
            # OpenStack Swift calls a key with a NUL a bad request.
            if key is not None and (code in ("NoSuchKey", "404") or (code == "400" and is_odd(key))):
                raise missing(self.uri, key) from error
            if code in ("NoSuchBucket", "404"):
                raise StoreUnreachable(
                    f"no bucket {self.bucket!r} at {self._client.meta.endpoint_url}",
                    "create it, or correct RETRAIN_STORE or RETRAIN_STORE_ENDPOINT",
                ) from error
            answer = error.response.get("ResponseMetadata", {})
            refusal = Refusal(code, message, answer.get("HTTPStatusCode", 0))
            raise StoreUnreachable(
                f"{self.uri} refused {error.operation_name}: {refusal}",
                refusal.hint(answer.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")),
            ) from error
        except _identity() as error:
            raise StoreUnreachable(f"cannot sign in to {self.uri}: {first_line(error)}", SIGN_IN) from error
        except BotoCoreError as error:
            raise StoreUnreachable(
                f"cannot reach {self.uri} at {self._client.meta.endpoint_url}: {first_line(error)}",
                PRIVATE_CA if isinstance(error, SSLError) else "check the network and RETRAIN_STORE_ENDPOINT",
            ) from error


def _identity() -> tuple[type[Exception], ...]:
    """Return the errors of boto3 when it renews an identity."""
    from botocore import exceptions

    return (
        *(exceptions.SSOError, exceptions.LoginError, exceptions.TokenRetrievalError, exceptions.NoAuthTokenError),
        *(exceptions.CredentialRetrievalError, exceptions.MetadataRetrievalError, exceptions.NoCredentialsError),
        *(exceptions.PartialCredentialsError, exceptions.RefreshWithMFAUnsupportedError),
    )


def _private_ca(session: Any) -> dict[str, bytes]:
    """Return obstore's option for the certificates that boto3 trusts, by AWS_CA_BUNDLE or the profile's ``ca_bundle``.

    obstore reads neither; it adds them to the machine's own, where boto3 trusts these alone.
    """
    bundle = session._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not bundle:
        return {}
    try:
        pem = Path(bundle).expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(
            f"cannot read the certificates {bundle}: {error.strerror}", "correct AWS_CA_BUNDLE"
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise SettingsError(f"there is no certificate in {bundle}", "AWS_CA_BUNDLE names a file in the format PEM")
    return {"root_certificate": pem}


@contextmanager
def _identity_errors(uri: str) -> Iterator[None]:
    """Translate errors of boto3 and obstore about profiles, credentials and endpoints."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise StoreUnreachable(
            f"no AWS credentials found for {uri}",
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is attached",
        ) from error
    except BotoCoreError as error:
        raise StoreUnreachable(f"cannot sign in to {uri}: {error}", SIGN_IN) from error
    except ValueError as error:  # boto3's error for an endpoint that is not a URL
        raise SettingsError(
            f"cannot open store {uri}: {error}", "expected RETRAIN_STORE_ENDPOINT as http(s)://HOST:PORT"
        ) from error
