"""The object store behind one URI: a folder, memory, S3 and what speaks it, Google Cloud or Azure.

boto3 holds the identity, lists and answers for odd keys (``..``, control characters), which obstore refuses;
obstore moves the bytes. Nothing under ``labeled/`` is ever changed, moved or deleted by this project.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from infra.files import write_atomic
from infra.keys import is_odd
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError, SettingsError, StoreUnreachable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_NO_SUCH_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object. ``etag`` changes whenever the content may have changed; it is not a checksum."""

    key: str
    size: int
    etag: str


class Store(ABC):
    """What the stages need of a bucket. Keys are relative to the store's URI.

    Every method raises StoreUnreachable when the store does not answer or refuses us.
    """

    uri: str

    @abstractmethod
    def check(self) -> None:
        """Find out now whether the store can be used, with a message that says what to do if not."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List all objects under ``prefix``, in any order."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return an object's bytes; raises ObjectMissing when there is none."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object whole: readers see the old bytes or the new ones.

        Raises:
            RetrainError: for an odd key (``infra.keys.is_odd``), which a store may hold but this project never writes.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object at ``key``."""

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Atomic on a folder and in memory. Elsewhere a look and a write, since not every S3-compatible store knows
        conditional writes: whoever needs exactly one winner checks afterwards what was stored.
        """
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file on this machine, if it does."""
        del key
        return None


class MemoryStore(Store):
    """A store that lives as long as its process; keeps any key, however odd. Made for tests."""

    def __init__(self, uri: str = "memory://") -> None:
        self.uri = uri
        self.objects: dict[str, bytes] = {}
        self._creating = Lock()

    def check(self) -> None:
        """Memory is always there."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), sha256(data))

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise _missing(self.uri, key)
        return self.objects[key]

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def exists(self, key: str) -> bool:
        return key in self.objects

    def create(self, key: str, data: bytes) -> bool:
        with self._creating:
            return super().create(key, data)


class FolderStore(Store):
    """A folder on this machine: the embedded default."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = self.root.as_uri()

    def check(self) -> None:
        if not self.root.is_dir():
            raise StoreUnreachable(
                f"no folder at {self.root} (store {self.uri})",
                "create it, put cells into it with `retrain import FOLDER`, or set RETRAIN_STORE",
            )
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnreachable(f"no permission to read and write {self.root}", "check the folder's owner and mode")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # The walk starts at the deepest folder that the prefix names whole, and never outside the root.
        folder_key = prefix.rpartition("/")[0]
        if "/" in prefix and is_odd(folder_key):
            return
        start = self.root / folder_key
        for folder, folders, files in os.walk(start, onerror=self._refuse):
            folders.sort()
            for name in sorted(files):
                path = Path(folder, name)
                # A name that is no UTF-8 must not stop the listing; its escaped form is reported as missing later.
                key = path.relative_to(self.root).as_posix().encode("utf-8", "surrogateescape")
                text = key.decode("utf-8", "backslashreplace")
                if not text.startswith(prefix) or name.startswith(".tmp-"):
                    continue
                try:
                    stat = path.stat()
                except OSError:
                    continue  # deleted while the listing runs, or a dangling link
                yield ObjectInfo(text, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}")

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            if error.errno in _NO_SUCH_FILE:
                raise _missing(self.uri, key) from error
            raise StoreUnreachable(
                f"cannot read {key!r} in {self.uri}: {error.strerror}", "check the file's owner and mode, and the disk"
            ) from error

    def put(self, key: str, data: bytes) -> None:
        _refuse_odd(self.uri, key)
        write_atomic(self._path(key), data)

    def exists(self, key: str) -> bool:
        return self.local_path(key) is not None

    def create(self, key: str, data: bytes) -> bool:
        _refuse_odd(self.uri, key)
        path = self._path(key)
        # Written whole beside it first, then linked: link() fails when the name is taken, atomically.
        temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(4).hex()}")
        write_atomic(temporary, data)
        try:
            path.hardlink_to(temporary)
        except OSError:
            # The name is taken; or the file system knows no hard links (exFAT, some shares), and a look and a write
            # must do, as in a bucket.
            return super().create(key, data)
        finally:
            temporary.unlink()
        return True

    def local_path(self, key: str) -> Path | None:
        try:
            path = self._path(key)
            return path if path.is_file() else None
        except (ObjectMissing, OSError):  # an odd key, or a name too long for the file system
            return None

    def _path(self, key: str) -> Path:
        if is_odd(key):
            raise _missing(self.uri, key)
        return self.root / key

    def _refuse(self, error: OSError) -> None:
        if error.errno not in _NO_SUCH_FILE:
            raise StoreUnreachable(
                f"cannot list {error.filename}: {error.strerror}", "check the folder's owner and mode"
            ) from error


class ObstoreStore(Store):
    """A bucket reached through obstore alone: Google Cloud (gs://) and Azure (az://)."""

    def __init__(self, uri: str) -> None:
        import obstore.store

        self.uri = uri
        try:
            self._data: Any = obstore.store.from_url(uri, client_options=_client_options(), retry_config=_retries())
        except Exception as error:
            raise SettingsError(f"cannot open store {uri}: {error}", "check RETRAIN_STORE") from error

    def check(self) -> None:
        next(self.list("retraining/"), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from _translated(self.uri, lambda: list(self._list(prefix)))

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        import obstore

        # obstore lists whole folders: "a/b" does not find "a/bc".
        for chunk in obstore.list(self._data, prefix=prefix.rpartition("/")[0]):
            for meta in chunk:
                if meta["path"].startswith(prefix):
                    yield ObjectInfo(meta["path"], meta["size"], meta["e_tag"] or str(meta["last_modified"]))

    def get(self, key: str) -> bytes:
        import obstore

        if is_odd(key):
            raise _missing(self.uri, key)
        return _translated(self.uri, lambda: bytes(obstore.get(self._data, key).bytes()), key)

    def put(self, key: str, data: bytes) -> None:
        import obstore

        _refuse_odd(self.uri, key)
        _translated(self.uri, lambda: obstore.put(self._data, key, data), key)

    def exists(self, key: str) -> bool:
        import obstore

        if is_odd(key):
            return False
        try:
            _translated(self.uri, lambda: obstore.head(self._data, key), key)
        except ObjectMissing:
            return False
        return True


class S3Store(ObstoreStore):
    """An S3 bucket, on AWS or any compatible endpoint, with boto3's own identity (profiles, roles, SSO)."""

    def __init__(self, uri: str, *, endpoint: str | None = None, region: str | None = None) -> None:
        parts = urlsplit(uri)
        self.uri = uri
        self.bucket = parts.netloc
        self.prefix = unquote(parts.path).strip("/")
        if not self.bucket or (self.prefix and is_odd(self.prefix)):
            raise SettingsError(
                f"store {uri!r} names no bucket or an impossible prefix", "expected s3://BUCKET or s3://BUCKET/PREFIX"
            )
        with _identity_errors(uri):
            self._connect(endpoint, region)

    def _connect(self, endpoint: str | None, region: str | None) -> None:
        import boto3
        import obstore.store
        from botocore.config import Config
        from botocore.exceptions import NoCredentialsError
        from obstore.auth.boto3 import Boto3CredentialProvider

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
                # Three tries of 3 s: a store that is not there is found out within about 12 s.
                retries={"total_max_attempts": 3, "mode": "standard"},
                connect_timeout=3,
                read_timeout=20,
                max_pool_connections=32,
            ),
        )
        options: dict[str, Any] = {"region": region}
        # Not only the argument: boto3 also takes an endpoint from AWS_ENDPOINT_URL_S3 or the profile.
        if not urlsplit(self._client.meta.endpoint_url).netloc.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options |= {"endpoint": self._client.meta.endpoint_url, "virtual_hosted_style_request": False}
        self._data = obstore.store.S3Store(
            self.bucket,
            prefix=self.prefix or None,
            credential_provider=Boto3CredentialProvider(session),
            client_options=_client_options(),
            retry_config=_retries(),
            **options,
        )

    def check(self) -> None:
        """Ask for one key, which needs the same rights as a night: the endpoint, the identity and the bucket."""
        self._boto(lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._full("labeled/"), MaxKeys=1))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(prefix))
        )
        while (page := self._boto(lambda: next(pages, None))) is not None:
            for entry in page.get("Contents", ()):
                yield ObjectInfo(entry["Key"][len(self._full("")) :], entry["Size"], entry["ETag"].strip('"'))

    def get(self, key: str) -> bytes:
        if not is_odd(key):
            return super().get(key)

        def read() -> bytes:
            return self._client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()

        return self._boto(read, key)

    def exists(self, key: str) -> bool:
        if not is_odd(key):
            return super().exists(key)
        try:
            self._boto(lambda: self._client.head_object(Bucket=self.bucket, Key=self._full(key)), key)
        except ObjectMissing:
            return False
        return True

    def presign(self, key: str, seconds: int) -> str:
        """Return a link that anyone can read the object by for ``seconds``."""
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": self._full(key)}, ExpiresIn=seconds
        )

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _boto(self, call: Callable[[], T], key: str | None = None) -> T:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if key is not None and code in ("NoSuchKey", "404"):
                raise _missing(self.uri, key) from error
            if code in ("NoSuchBucket", "404"):
                raise StoreUnreachable(
                    f"no bucket {self.bucket!r} at {self._client.meta.endpoint_url}",
                    "create it, or correct RETRAIN_STORE or RETRAIN_STORE_ENDPOINT",
                ) from error
            raise StoreUnreachable(
                f"{self.uri} refused {error.operation_name}: {code} {_message(error.response)}".rstrip(),
                _refusal_hint(code, error.response),
            ) from error
        except BotoCoreError as error:
            raise StoreUnreachable(
                f"cannot reach {self.uri} at {self._client.meta.endpoint_url}: {error}",
                "check the network, RETRAIN_STORE_ENDPOINT and the credentials",
            ) from error


def open_store(uri: str, *, endpoint: str | None = None, region: str | None = None) -> Store:
    """Return the store at ``uri``: file:///folder, memory://, s3://bucket/prefix, gs://... or az://...

    Raises:
        SettingsError: for a URI that is none of these.
        StoreUnreachable: when there are no credentials at all. Whether the store answers is for ``check`` to find.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise SettingsError(f"store {uri!r} is no absolute folder", "expected file:///absolute/folder")
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return _memory_stores.setdefault(uri, MemoryStore(uri))
    if parts.scheme == "s3":
        return S3Store(uri, endpoint=endpoint, region=region)
    if parts.scheme in ("gs", "az"):
        return ObstoreStore(uri)
    raise SettingsError(
        f"store {uri!r} has an unknown scheme {parts.scheme!r}",
        "expected file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://name",
    )


# One process, one memory per name: opening the same URI twice must show the same objects.
_memory_stores: dict[str, MemoryStore] = {}


def _missing(uri: str, key: str) -> ObjectMissing:
    return ObjectMissing(f"no object {key!r} in {uri}", "it was deleted, or the store is not the one that wrote it")


def _refuse_odd(uri: str, key: str) -> None:
    if is_odd(key):
        raise RetrainError(
            f"refused to write {key!r} into {uri}",
            "a key must have no empty, '.' or '..' part and no control character",
        )


def _message(response: Any) -> str:
    return str(response.get("Error", {}).get("Message", ""))


def _refusal_hint(code: str, response: Any) -> str:
    if code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"):
        return "the bucket lies in another region: set RETRAIN_STORE_REGION or AWS_REGION"
    if code == "RequestTimeTooSkewed":
        return "set this machine's clock"
    if response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "try again later; or RETRAIN_STORE_ENDPOINT names something that is no S3 API (a web console?)"
    return "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...) and the bucket's policy"


@contextmanager
def _identity_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 and obstore say about profiles, credentials and endpoints into our errors."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise StoreUnreachable(
            f"no AWS credentials found for {uri}",
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is attached",
        ) from error
    except BotoCoreError as error:
        raise StoreUnreachable(f"cannot sign in to {uri}: {error}", "check AWS_PROFILE and ~/.aws") from error
    except ValueError as error:  # boto3's word for an endpoint that is no URL
        raise SettingsError(
            f"cannot open store {uri}: {error}", "expected RETRAIN_STORE_ENDPOINT as http(s)://HOST:PORT"
        ) from error


def _client_options() -> Any:
    # A timeout for the whole request would fail a large model on a slow line: limit the silence instead.
    return {"allow_http": True, "connect_timeout": "3s", "read_timeout": "30s", "timeout": "10m"}


def _retries() -> Any:
    # obstore's own ten retries within 3 minutes keep a night waiting for a store that is gone.
    backoff = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 3}
    return {"max_retries": 4, "backoff": backoff, "retry_timeout": timedelta(seconds=60)}


def _translated(uri: str, call: Callable[[], T], key: str = "") -> T:
    """Run an obstore call; its errors come back as ours."""
    from obstore import exceptions

    try:
        return call()
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise StoreUnreachable(f"no bucket at {uri}", "create it, or correct RETRAIN_STORE") from error
        raise _missing(uri, key) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise StoreUnreachable(f"{uri} refused {key!r}", "check the credentials and the bucket's policy") from error
    except (exceptions.BaseError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StoreUnreachable(f"cannot reach {uri}: {first_line[:300]}", "check the network and the store") from error


__all__ = ["FolderStore", "MemoryStore", "ObjectInfo", "ObstoreStore", "S3Store", "Store", "open_store"]
