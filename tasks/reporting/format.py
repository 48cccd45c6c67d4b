"""How a report prints what it is given: text from outside made harmless and short, numbers made readable.

Keys, patient ids and messages come from outside: everything printed passes ``visible``, which shows what would
otherwise act on the reader (control and direction marks).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

from validation.records import Interval, Metrics
from validation.redaction import mask

KEY_LENGTH = 80  # characters of a key that are shown: the middle goes, the ends tell keys apart
NOT_DEFINED = "not defined"
NO_CELLS = "not defined (no cells of the class)"


# --- text from outside -------------------------------------------------------------------------------------------


def visible(text: str) -> Iterator[str]:
    """The characters of ``text``, those that would act rather than show (and tall piles of accents) spelled out."""
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
    """Return ``text`` with what looks like a secret replaced by three stars."""
    return _ACCESS_KEY.sub("***", _QUERY.sub(r"\1***", mask(text)))


def shorten(text: str, length: int = KEY_LENGTH) -> str:
    """At most ``length`` characters, nothing secret: a longer text loses its middle."""
    far = 4 * length + 400
    if len(text) > 2 * far:
        # Of a megabyte only the ends are ever shown; a secret there lies whole within these.
        text = text[:far] + text[-far:]
    text = redact(text)
    if len(text) <= length:
        shown = list(visible(text))
        if sum(map(len, shown)) <= length:
            return "".join(shown)
    half = length // 2
    head = _fill(visible(text[:length]), half)
    tail = _fill(reversed(list(visible(text[-length:]))), length - half - 1)
    return "".join(head) + "…" + "".join(reversed(tail))


def _fill(parts: Iterator[str], length: int) -> list[str]:
    kept: list[str] = []
    for part in parts:
        length -= len(part)
        if length < 0:
            break
        kept.append(part)
    return kept


# --- numbers -----------------------------------------------------------------------------------------------------


def share(value: float, digits: int = 1) -> str:
    """0.948 as 94.8%."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else NOT_DEFINED


def number(value: float | None) -> str:
    """A number of unknown kind: counts whole, fractions to 4 digits; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return NOT_DEFINED
    whole = float(value).is_integer() and (abs(value) > 1 or value == 0)
    return (f"{value:,.0f}" if whole else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}").replace("-", "−")


def fixed(interval: Interval | None, scale: float = 100, digits: int = 1) -> str:
    """A value of a known kind, scaled; the words for an undefined one."""
    return NOT_DEFINED if interval is None else f"{scale * interval.value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a true minus; zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def spread(interval: Interval, scale: float = 100, digits: int = 1) -> str:
    """The two ends of an interval, 93.1–96.0."""
    return f"{scale * interval.low:.{digits}f}–{scale * interval.high:.{digits}f}"


def measured(metrics: Metrics, name: str) -> Interval | str:
    """One metric of a model, or the words for why it has none."""
    value: Interval | None = getattr(metrics, name)
    if value is not None and all(math.isfinite(v) for v in (value.value, value.low, value.high)):
        return value
    infected, clear = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    needed = {"sensitivity": infected, "specificity": clear, "accuracy": infected + clear}.get(name, infected * clear)
    return NOT_DEFINED if needed else NO_CELLS


def when(moment: datetime) -> str:
    """A time for people, in UTC whatever zone it was recorded in."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def file_size(size: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def level(interval: Interval) -> str:
    """0.95 as 95%, 0.975 as 97.5%."""
    return f"{round(100 * interval.level, 2):g}%"


def count(amount: int, one: str, many: str | None = None) -> str:
    """1 patient, 20 patients, 1,000 cells."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"
