"""Every key and name that the project writes, and the parsing of input keys.

Layout of the store:

    labeled/<Class>/<name>                   input: never changed, moved or deleted by this project
    retraining/<kind>/<id>.json              records (validation/records.py)
    retraining/<kind>/<id>.<table>.parquet   their tables
    retraining/<kind>/<id>.<table>.parts     a large table: names its parts (infra/store/parts.py)
    retraining/parts/<sha256>.parquet        parts of tables, each of one or more
    retraining/validations/<id>.docs.html    Great Expectations' Data Docs of a validation
    retraining/candidates/<id>/...           model file
    retraining/looks/<n>-<pair>.json         the ledger of looks
    retraining/splits/origins/<n>-<split>-<token>.cells.parquet   first names of patients and cells, for ever
    retraining/members/<id>/...              a member's file and its native weights
    retraining/field/<id>.json               patients new to a champion, as it scored them
    retraining/history/<n>.json              changes of the champion, with their evidence
    retraining/approvals/<id>.json           decisions that wait for a person
    retraining/answers/<id>.json             the answers
    retraining/reports/<id>.html             reports
    retraining/retired/<id>.json             decisions whose report was retired
    retraining/latest/<name>.json            moving pointers (latest snapshot, latest night)
    retraining/synthetic.json                present when the input cells are synthetic
"""

from __future__ import annotations

import re
from typing import NamedTuple

from infra.local.files import is_temporary

LABELED = "labeled/"
OURS = "retraining/"
ORIGINS = f"{OURS}splits/origins/"
PARTS = f"{OURS}parts/"
TABLE, MANIFEST = ".parquet", ".parts"
SYNTHETIC_MARK = f"{OURS}synthetic.json"
MODEL_NAME = "malaria-cell"
CHAMPION_ALIAS = "champion"
# A version that is registered and not champion yet.
CHALLENGER_ALIAS = "challenger"
# What a night makes, by Prefect's names for assets: lineage is drawn between them.
SNAPSHOT_ASSET = "malaria://snapshot"
CANDIDATE_ASSET = "malaria://candidates/"
CHAMPION_ASSET = "malaria://champion"
REPORT_ASSET = "malaria://report"

# Pages beside the reports, whose names are digests: the index of all, and the planned changes.
INDEX, PLAN = "index", "planned-changes"

# Files of file managers and of the official archive among images: counted, never fetched.
JUNK_NAMES = frozenset({"thumbs.db", ".ds_store", "desktop.ini"})

# Control characters, and the lone surrogates of a file name that is not UTF-8.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def record_key(kind: str, id_: str) -> str:
    """Return the key of the record ``id_`` of ``kind``."""
    return f"{OURS}{kind}/{id_}.json"


def table_key(kind: str, id_: str, table: str, suffix: str = TABLE) -> str:
    """Return the key of a record's table ``table``; ``suffix``: ``MANIFEST`` for one in parts."""
    return f"{OURS}{kind}/{id_}.{table}{suffix}"


def part_key(digest: str) -> str:
    """Return the key of the part of tables whose bytes have the SHA-256 ``digest``."""
    return f"{PARTS}{digest}{TABLE}"


def origins_key(number: int, split: str, token: str) -> str:
    """Return the key of the table of origins that a split adds as ``number``; ``token`` is of one attempt alone."""
    return f"{ORIGINS}{number:06d}-{split}-{token}.cells.parquet"


def candidate_key(id_: str, name: str) -> str:
    """Return the key of a candidate's file ``name``."""
    return f"{OURS}candidates/{id_}/{name}"


def member_key(id_: str, name: str) -> str:
    """Return the key of a member's file ``name``."""
    return f"{OURS}members/{id_}/{name}"


def data_docs_key(validation: str, digest: str) -> str:
    """Return the key of a validation's Data Docs, beside the reports' folder, so that reports can link to them."""
    return f"{OURS}validations/{validation}.{digest}.docs.html"


def look_key(number: int, pair: str) -> str:
    """Return the key of look ``number``; ``pair`` is the digest of the two models.

    With the pair in the key, two nights with the same number lose neither look.
    """
    return f"{OURS}looks/{number:06d}-{pair}.json"


def history_key(number: int) -> str:
    """Return the key of entry ``number`` of the champion's history."""
    return f"{OURS}history/{number:06d}.json"


def proposal_key(number: int, digest: str) -> str:
    """Return the key of a proposed entry ``number`` of the history; ``digest`` is that of its text."""
    return f"{OURS}history/proposed/{number:06d}-{digest}.json"


def report_key(id_: str) -> str:
    """Return the key of the report on a decision, or of another page beside it."""
    return f"{OURS}reports/{id_}.html"


def latest_key(name: str) -> str:
    """Return the key of a moving pointer."""
    return f"{OURS}latest/{name}.json"


def is_odd(key: str) -> bool:
    """Return whether no store may get ``key``.

    Its parts are such as obstore refuses (``..``, ``.``, empty, control characters, a final ``/``), or a folder store
    would take it for a file that is being written.
    """
    parts = key.split("/")
    unsafe = any(part in ("", ".", "..") for part in parts) or _UNSAFE.search(key)
    return bool(unsafe or is_temporary(parts[-1]))


class LabeledKey(NamedTuple):
    """The parts of a key under ``labeled/``: the class folder and the file's name."""

    label: str
    name: str


def parse_labeled(key: str) -> LabeledKey | None:
    """Parse ``labeled/<Class>/<name>``; None when ``key`` has another form or is odd."""
    if not key.startswith(LABELED) or is_odd(key):
        return None
    label, _, name = key.removeprefix(LABELED).partition("/")
    return LabeledKey(label, name) if label and name else None


def is_junk(key: str) -> bool:
    """Return whether ``key`` is a file manager's leftover, or the placeholder of a folder."""
    if key.endswith("/"):
        return True
    name = key.rsplit("/", 1)[-1].lower()
    # "._x.png" is macOS's metadata of x.png, not an image.
    return name in JUNK_NAMES or name.startswith("._")
