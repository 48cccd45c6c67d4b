"""Every key and name that the project writes, in one place; and how a key from outside is read.

Layout of the store:

    labeled/<Class>/<name>                   input: never changed, moved or deleted by this project
    retraining/<kind>/<id>.json              records (validation/records.py)
    retraining/<kind>/<id>.<table>.parquet   their tables
    retraining/validations/<id>.docs.html    Great Expectations' Data Docs of a validation
    retraining/candidates/<id>/...           model file and native weights
    retraining/looks/<generation>/<n>-<pair>.json  the ledger of looks at the holdout
    retraining/generations/<name>.json       rotations of the holdout
    retraining/generations/<name>/...        which cells and patients were ever on which of its sides
    retraining/history/<n>.json              what became champion when, and on which evidence
    retraining/approvals/<id>.json           decisions that wait for a person
    retraining/answers/<id>.json             what the person answered
    retraining/reports/<id>.html             reports
    retraining/retired/<id>.json             decisions whose report was retired, and why
    retraining/latest/<name>.json            the few pointers that move (latest snapshot, latest night)
    retraining/synthetic.json                there when the input cells are synthetic
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LABELED = "labeled/"
OURS = "retraining/"
SYNTHETIC_MARK = f"{OURS}synthetic.json"
MODEL_NAME = "malaria-cell"
CHAMPION_ALIAS = "champion"

# Files that file managers and the official archive leave among images; they are counted, never fetched.
JUNK_NAMES = frozenset({"thumbs.db", ".ds_store", "desktop.ini"})

# Control characters, and the lone halves of surrogate pairs that stand for a file name that is no UTF-8.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def record_key(kind: str, id_: str) -> str:
    """Return where the record ``id_`` of ``kind`` lies."""
    return f"{OURS}{kind}/{id_}.json"


def table_key(kind: str, id_: str, table: str) -> str:
    """Return where the table ``table`` of a record lies."""
    return f"{OURS}{kind}/{id_}.{table}.parquet"


def candidate_key(id_: str, name: str) -> str:
    """Return where the file ``name`` of a candidate lies."""
    return f"{OURS}candidates/{id_}/{name}"


def data_docs_key(validation: str) -> str:
    """Return where the Data Docs of a validation lie; beside the reports' folder, so that a report can link to them."""
    return f"{OURS}validations/{validation}.docs.html"


def look_key(generation: str, number: int, pair: str) -> str:
    """Return where look ``number`` of a holdout generation lies; ``pair`` is the digest of who was compared.

    With the pair in its name, two nights that take the same number at once lose neither look.
    """
    return f"{OURS}looks/{generation}/{number:04d}-{pair}.json"


def history_key(number: int) -> str:
    """Return where entry ``number`` of the champion's history lies."""
    return f"{OURS}history/{number:06d}.json"


def report_key(id_: str) -> str:
    """Return where the report on a decision lies."""
    return f"{OURS}reports/{id_}.html"


def report_index_key() -> str:
    """Return where the index of all reports lies."""
    return f"{OURS}reports/index.html"


def latest_key(name: str) -> str:
    """Return where a moving pointer lies."""
    return f"{OURS}latest/{name}.json"


def is_odd(key: str) -> bool:
    """Whether ``key`` has parts that obstore refuses (``..``, ``.``, empty, control characters, a trailing slash)."""
    parts = key.split("/")
    return any(part in ("", ".", "..") for part in parts) or _UNSAFE.search(key) is not None


@dataclass(frozen=True)
class LabeledKey:
    """A key under ``labeled/``, taken apart: the class folder and the file's name."""

    label: str
    name: str


def parse_labeled(key: str) -> LabeledKey | None:
    """Take ``labeled/<Class>/<name>`` apart; None when ``key`` has not that form or could mislead a path."""
    if not key.startswith(LABELED) or is_odd(key):
        return None
    label, _, name = key.removeprefix(LABELED).partition("/")
    return LabeledKey(label, name) if label and name else None


def is_junk(key: str) -> bool:
    """Whether ``key`` is a file manager's leftover."""
    name = key.rsplit("/", 1)[-1].lower()
    # "._x.png" holds what macOS knows about x.png, and is no image.
    return name in JUNK_NAMES or name.startswith("._")
