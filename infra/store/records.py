"""Records and tables in the store: JSON and Parquet under the keys of ``infra.store.keys``.

pandas and pyarrow are imported where tables are: a command that reads records only must not wait for them.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from infra.store.base import Store
from infra.store.keys import MANIFEST, ORIGINS, OURS, TABLE, latest_key, record_key, table_key
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError, Unreachable, UsageError
from validation.records import ApprovalAnswer, ApprovalRequest, Look, Promotion, Record, Retired

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from infra.store.parts import Manifest

R = TypeVar("R", bound=Record)

log = logging.getLogger(__name__)

PAGE = ".html"
# Tables of fewer rows are one file each, written whole.
WORTH_PARTS = 4096
# Of a file's SHA-256, in its name.
DIGITS = 12
# All others are left by a night's stages, each of which finds its own by its name, and makes it where it is not.
NEVER_MADE_AGAIN = (ApprovalRequest.kind, Retired.kind)
IN_THE_REGISTRY = (Promotion.kind, ApprovalAnswer.kind, Look.kind)
REPAIRED = "the next night, or any command that changes the champion, writes it again"


class Records:
    """Reads and writes the records of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def load(self, record: type[R], id_: str) -> R:
        """Return a stored record; raises ObjectMissing when there is none, RetrainError when it is damaged."""
        return self._parse(record, record_key(record.kind, id_))

    def load_at(self, record: type[R], key: str) -> R:
        """Return the record at ``key``, for those without an id; raises as ``load`` does."""
        return self._parse(record, key)

    def find(self, record: type[R], id_: str, *, strict: bool = False) -> R | None:
        """Return a stored record or None: a damaged one, which the log names, counts as absent and is written again.

        Raises:
            RetrainError: with ``strict``, for a damaged record.
        """
        try:
            return self.load(record, id_)
        except ObjectMissing:
            return None
        except Unreachable:
            raise
        except RetrainError as error:
            if strict:
                raise
            log.error("counts as absent: %s", error.message)
            return None

    def find_whole(self, record: type[R], id_: str) -> R | None:
        """Return a stored record all of whose tables can be read; None where it has to be made again."""
        if (stored := self.find(record, id_)) is None:
            return None
        for table in (file for file in _files(stored) if file.endswith((TABLE, MANIFEST))):
            try:
                self.load_table(table)
            except Unreachable:
                raise
            except RetrainError as error:
                log.error("made again: %s", error.message)
                return None
        return stored

    def save(self, record: Record, id_: str) -> None:
        """Store a record under its id."""
        self.store.put(record_key(record.kind, id_), record.model_dump_json(indent=2).encode())

    def save_once(self, record: R, id_: str) -> R:
        """Store a record unless a whole one is there; return the stored one: of two machines one wins.

        The tables of one that lost are removed, so that no record lies beside tables of another machine.
        """
        key = record_key(record.kind, id_)
        is_new = self.store.create(key, record.model_dump_json(indent=2).encode())
        if not is_new and self.find_whole(type(record), id_) is None:
            self.save(record, id_)  # in place of a damaged one
        stored = self.find(type(record), id_) or record
        if lost := set(_files(record)) - set(_files(stored)):
            log.info("%s was written by another machine at the same time: its record counts", key)
            for file in lost:
                self.store.delete(file)
        return stored

    def ids(self, record: type[Record]) -> list[str]:
        """Return the ids of all stored records of a kind, sorted."""
        prefix = f"{OURS}{record.kind}/"
        keys = (info.key.removeprefix(prefix) for info in self.store.list(prefix))
        return sorted(key.removesuffix(".json") for key in keys if key.endswith(".json") and "/" not in key)

    def one_beginning(self, record: type[Record], beginning: str) -> str:
        """Return the id of the one stored record of a kind whose id begins like that; people do not type 24 digits.

        Raises:
            UsageError: when there is none, or more than one.
        """
        ids = [id_ for id_ in self.ids(record) if beginning and id_.startswith(beginning)]
        if len(ids) != 1:
            raise UsageError(
                f"{len(ids) or 'no'} {record.kind} begin with {beginning!r} in {self.store.uri}",
                "`retrain history` and the reports name them, `retrain report latest` shows the newest",
            )
        return ids[0]

    def save_table(
        self,
        record: type[Record],
        id_: str,
        name: str,
        table: pd.DataFrame | pa.Table,
        *,
        by: Sequence[str] = (),
        before: str | None = None,
        keep: Callable[[str, bytes], object] | None = None,
    ) -> str:
        """Store a table of a record under a key with its digest, and return the key.

        So no table takes the place of another that a machine with the same record to make has stored meanwhile. A large
        one that names the columns ``by`` is stored in parts, of which only those are written that the table ``before``
        has not (infra/store/parts.py); ``by``: text columns by which it is sorted, and which name each row.
        ``keep`` is given key and bytes of each object of the table that is new.
        """
        from infra.store import parts

        written: dict[str, bytes] = {}
        if not by or len(table) < WORTH_PARTS:
            data, suffix = table_bytes(table), TABLE
        else:
            manifest, written = parts.save(self.store, _as_arrow(table), by, self._manifest_before(before))
            data, suffix = manifest.model_dump_json(exclude_defaults=True).encode(), MANIFEST
        key = content_key(record, id_, name, data, suffix)
        self.store.put(key, data)
        if keep is not None:
            for new in {**written, key: data}.items():
                keep(*new)
        return key

    def _manifest_before(self, key: str | None) -> Manifest | None:
        """Return the manifest of a table; None where it is in one file, damaged or gone: then all is written."""
        try:
            return self.load_manifest(key) if key and key.endswith(MANIFEST) else None
        except Unreachable:
            raise
        except RetrainError as error:
            log.warning("a table is written whole: %s", error.message)
            return None

    def load_table(self, key: str) -> pd.DataFrame:
        """Return a stored table; raises ObjectMissing when there is none, RetrainError when it is damaged."""
        rows = self.load_rows(key)
        try:
            frame: pd.DataFrame = rows.to_pandas()
        except Exception as error:  # its metadata say how, and have no checksum
            raise RetrainError(f"the table {key} in {self.store.uri} is damaged", _remedy(key)) from error
        return frame

    def load_rows(self, key: str) -> pa.Table:
        """Return a stored table as columns; raises as ``load_table`` does."""
        import pyarrow.parquet as pq

        from infra.store import parts

        if key.endswith(MANIFEST):
            manifest = self.load_manifest(key)
            try:
                return parts.load(self.store, manifest)
            except Unreachable:
                raise
            except RetrainError as error:
                raise RetrainError(f"the table {key} is damaged: {error.message}", _remedy(key)) from error
        data = self.store.get(key)
        try:
            return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        except Exception as error:  # a flipped bit in the metadata may raise anything
            raise RetrainError(f"the table {key} in {self.store.uri} is damaged", _remedy(key)) from error

    def load_manifest(self, key: str) -> Manifest:
        """Return what a table in parts consists of; raises as ``load_table`` does."""
        from infra.store.parts import Manifest

        data = self.store.get(key)
        if is_named_after(key, data):
            return Manifest.model_validate_json(data)
        raise RetrainError(f"the list of parts {key} in {self.store.uri} is damaged", _remedy(key))

    def point(self, name: str, record: Record) -> None:
        """Set the moving pointer ``name`` to ``record``."""
        self.store.put(latest_key(name), record.model_dump_json(indent=2).encode())

    def latest(self, name: str, record: type[R]) -> R | None:
        """Return the record of the moving pointer ``name``, or None."""
        try:
            return self._parse(record, latest_key(name))
        except ObjectMissing:
            return None

    def _parse(self, record: type[R], key: str) -> R:
        data = self.store.get(key)
        try:
            return record.model_validate_json(data)
        except ValidationError as error:
            if "form" in record.model_fields and _is_older(data):
                raise ObjectMissing(
                    f"the record {key} in {self.store.uri} was written before there were members",
                    "it stays where it is, and counts as absent",
                ) from error
            raise RetrainError(
                f"the record {key} in {self.store.uri} is damaged or of another version: {error.error_count()} errors, "
                f"the first: {error.errors()[0]['loc']} {error.errors()[0]['msg']}",
                _remedy(key),
            ) from error


def content_key(record: type[Record], id_: str, name: str, data: bytes, suffix: str = TABLE) -> str:
    """Return the key of a record's table ``name`` that has these bytes: other bytes, another key."""
    return table_key(record.kind, id_, f"{name}-{sha256(data)[:DIGITS]}", suffix)


def is_named_after(key: str, data: bytes) -> bool:
    """Return whether a key of ``content_key`` is that of these bytes."""
    return key.rpartition(".")[0].endswith(f"-{sha256(data)[:DIGITS]}")


def table_bytes(table: pd.DataFrame | pa.Table) -> bytes:
    """Return a table as a Parquet file; same table, same bytes."""
    from infra.store.parts import parquet_bytes

    return parquet_bytes(_as_arrow(table))


def _as_arrow(table: pd.DataFrame | pa.Table) -> pa.Table:
    import pyarrow as pa

    return table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)


def _files(record: Record) -> list[str]:
    """Return the keys of the tables and pages that belong to a record alone."""
    values = (value for value in dict(record).values() if isinstance(value, str))
    return [value for value in values if value.startswith(OURS) and value.endswith((TABLE, MANIFEST, PAGE))]


def _remedy(key: str) -> str:
    """Return the one thing to do about a damaged object."""
    kind = key.removeprefix(OURS).partition("/")[0]
    if kind in IN_THE_REGISTRY:
        return f"the registry has it too: move {key} away, and {REPAIRED}"
    if kind in NEVER_MADE_AGAIN or key.startswith(ORIGINS):
        return "nothing makes it again: restore it from a backup, or from the bucket's earlier versions"
    return "a night over the same cells makes it again; if there are others now, restore it from a backup"


def _is_older(data: bytes) -> bool:
    """Whether a record is whole and has no ``form``."""
    try:
        fields = json.loads(data)
    except ValueError:
        return False
    return isinstance(fields, dict) and "form" not in fields
