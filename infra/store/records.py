"""Records and tables in the store: JSON and Parquet under the keys of ``infra.store.keys``."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from infra.store.base import Store
from infra.store.keys import OURS, latest_key, record_key, table_key
from validation.errors import ObjectMissing, RetrainError, UsageError
from validation.records import Record

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound=Record)


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

    def find(self, record: type[R], id_: str) -> R | None:
        """Return a stored record or None."""
        try:
            return self.load(record, id_)
        except ObjectMissing:
            return None

    def save(self, record: Record, id_: str) -> None:
        """Store a record under its id."""
        self.store.put(record_key(record.kind, id_), record.model_dump_json(indent=2).encode())

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

    def save_table(self, record: type[Record], id_: str, name: str, table: pd.DataFrame) -> str:
        """Store a table of a record and return its key. Same table, same bytes."""
        data = io.BytesIO()
        table.to_parquet(data, index=False, compression="zstd")
        key = table_key(record.kind, id_, name)
        self.store.put(key, data.getvalue())
        return key

    def load_table(self, key: str) -> pd.DataFrame:
        """Return a stored table; raises ObjectMissing when there is none, RetrainError when it is damaged."""
        import pandas as pd
        import pyarrow as pa

        data = self.store.get(key)
        try:
            return pd.read_parquet(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise RetrainError(
                f"the table {key} in {self.store.uri} is damaged", "delete it: the stage that wrote it writes it again"
            ) from error

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
                f"the record {key} in {self.store.uri} is damaged or of another version: {error.error_count()} errors",
                f"first: {error.errors()[0]['loc']} {error.errors()[0]['msg']}",
            ) from error


def _is_older(data: bytes) -> bool:
    """Whether a record is whole and has no ``form``."""
    try:
        fields = json.loads(data)
    except ValueError:
        return False
    return isinstance(fields, dict) and "form" not in fields
