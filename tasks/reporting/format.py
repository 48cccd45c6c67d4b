"""How a report prints values: text from outside made harmless and short, numbers made readable.

Keys, patient ids and messages come from outside: everything printed passes ``visible``, which spells out control and
direction marks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate

from markupsafe import Markup, escape

from validation.records import Interval, Metrics
from validation.redaction import mask

KEY_LENGTH = 80  # characters of a key that are shown: the middle is cut, since keys differ at their ends
NOT_DEFINED = "not defined"
NO_CELLS = "not defined (no cells of the class)"
# The metrics of a model as a report lists them; the first four are its headline numbers.
METRICS = {
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auc": "AUC",
    "accuracy": "Accuracy",
}
HEADLINES = dict(list(METRICS.items())[:4])


# --- text from outside -------------------------------------------------------------------------------------------


def capital(text: str) -> str:
    """Return ``text`` with a capital first letter."""
    return text[:1].upper() + text[1:]


def visible(text: str) -> Iterator[str]:
    """Yield the characters of ``text``; control and direction marks, and the fourth accent on a letter, as codes."""
    pile = 0
    for character in text:
        category = unicodedata.category(character)
        pile = pile + 1 if category.startswith("M") else 0
        acts = category[0] == "C" or category in ("Zl", "Zp")
        if (acts and character not in "\n\t") or pile > 3:
            yield f"⟨U+{ord(character):04X}⟩"
        else:
            yield character


# Signatures of presigned links and tokens, passwords in addresses, AWS's own key names: never for a page.
_QUERY = re.compile(
    r"(?i)([?&](?:x-amz-[a-z-]+|signature|sig|awsaccesskeyid|[a-z_-]*(?:token|password|secret))=)[^&\s\"'<>]+"
)
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def redact(text: str) -> str:
    """Return ``text`` with anything that looks like a secret replaced by three stars."""
    return _ACCESS_KEY.sub("***", _QUERY.sub(r"\1***", mask(text)))


def shorten(text: str, length: int = KEY_LENGTH) -> str:
    """Return at most ``length`` characters of ``text``, secrets redacted: a longer text loses its middle."""
    far = 4 * length + 400
    if len(text) > 2 * far:
        # Only the ends of a long text are shown; these are long enough to hold a secret there whole.
        text = text[:far] + text[-far:]
    text = redact(text)
    if len(text) <= length and len(shown := "".join(visible(text))) <= length:
        return shown
    half = length // 2
    head = _fitting(list(visible(text[:length])), half)
    tail = _fitting(list(visible(text[-length:]))[::-1], length - half - 1)
    return "".join(head) + "…" + "".join(reversed(tail))


def _fitting(parts: list[str], length: int) -> list[str]:
    """Return the first parts that together have at most ``length`` characters."""
    return [part for part, end in zip(parts, accumulate(map(len, parts)), strict=True) if end <= length]


# --- tables ------------------------------------------------------------------------------------------------------


def cards(table: Markup, label: str) -> Markup:
    """Return a table whose cells carry their column's heading, which a phone shows beside them; named ``label``.

    The roles say what the elements are, since a table that is laid out as cards is no table to a browser. All text in
    ``table`` is escaped, so every tag in it is one of the templates'.
    """
    head, body = re.split(r"(?<=</thead>)", table, maxsplit=1) if "</thead>" in table else ("", str(table))
    headings = [re.sub(r"<small>.*?</small>|<[^>]+>", "", cell).strip() for cell in _CELL.findall(head)]

    def row(match: re.Match[str]) -> str:
        labels = iter(headings)
        return _OPENING.sub(
            lambda cell: f'<{cell[1]} role="{_ROLES[cell[1]]}" data-label="{next(labels, "")}"', match[0]
        )

    body = re.sub(r"<tr(?=[ >])", '<tr role="row"', re.sub(r"<tr.*?</tr>", row, body, flags=re.DOTALL))
    named = f'<table role="table" aria-label="{escape(shorten(label, 120))}"'
    text = (head + body).replace("<table", named, 1)
    return Markup(text)  # noqa: S704 - the templates' own, with headings that they escaped


_CELL = re.compile(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", re.DOTALL)
_OPENING = re.compile(r"<(td|th)(?=[ >])")
_ROLES = {"td": "cell", "th": "rowheader"}


# --- numbers -----------------------------------------------------------------------------------------------------


def share(value: float, digits: int = 1) -> str:
    """Return 0.948 as 94.8%."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else NOT_DEFINED


def number(value: float | None) -> str:
    """Return a number of unknown kind: counts whole, fractions to 4 digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else NOT_DEFINED
    whole = float(value).is_integer() and (abs(value) > 1 or value == 0)
    return _minus(f"{value:,.0f}" if whole else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}")


def fixed(interval: Interval | None, scale: float = 100, digits: int = 1) -> str:
    """Return the value of a metric, scaled; the words for an undefined one."""
    return NOT_DEFINED if interval is None else _minus(f"{scale * interval.value:.{digits}f}")


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else _minus(text)


def _minus(text: str) -> str:
    """Return a number with a true minus sign in place of a hyphen."""
    return text.replace("-", "−")


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points: 0.023 as 2.30 points higher."""
    if round(100 * difference, 2) == 0:
        return "unchanged"
    return f"{100 * abs(difference):.2f} points {'higher' if difference > 0 else 'lower'}"


def spread(interval: Interval, scale: float = 100, digits: int = 1) -> str:
    """Return the two ends of an interval, 93.1–96.0."""
    return f"{scale * interval.low:.{digits}f}–{scale * interval.high:.{digits}f}"


def measured(metrics: Metrics, name: str) -> Interval | str:
    """Return one metric of a model, or the words for why it has none."""
    value: Interval | None = getattr(metrics, name)
    if value is not None and all(math.isfinite(v) for v in (value.value, value.low, value.high)):
        return value
    infected, clear = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    needed = {"sensitivity": infected, "specificity": clear, "accuracy": infected + clear}.get(name, infected * clear)
    return NOT_DEFINED if needed else NO_CELLS


def when(moment: datetime) -> str:
    """Return a time in UTC, whatever zone it was recorded in."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """Return seconds as seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def level(interval: Interval) -> str:
    """Return the level of an interval: 0.95 as 95%, 0.975 as 97.5%."""
    return f"{round(100 * interval.level, 2):g}%"


def count(amount: int, one: str, many: str | None = None) -> str:
    """Return 1 patient, 20 patients, 1,000 cells."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"
