"""Masks secrets in text: passwords in addresses, and the values of all secrets that this process was given.

Libraries may put any secret into their messages, so the secrets themselves are registered and searched for.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import quote, unquote

# A shorter one would match ordinary words.
SHORTEST = 8
HIDDEN = "***"

# Up to the last @ of the word, since a password may contain an unescaped one.
_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S+@")
# A user name, which is often a token; that of a database is only a name.
_USER = re.compile(r"(?i)(?<![\w+.-])((?!postgres|mysql|mssql|redis)[a-z][\w+.-]*://)[^/?#@\s]+@")
_PASSWORD_ARGUMENT = re.compile(r"(?i)\b((?:\w*password|passwd|pwd|secret|token|signature|sig)=)[^&;\s'\"]+")


class _Known:
    """The registered secrets, and the pattern that matches any of them."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.pattern: re.Pattern[str] | None = None

    def add(self, forms: set[str]) -> None:
        if forms <= self.secrets:
            return
        self.secrets |= forms
        # The longest first: one may contain another.
        words = sorted(self.secrets, key=lambda word: (-len(word), word))
        self.pattern = re.compile("|".join(map(re.escape, words)))


_known = _Known()


def register_secret(secret: str | None) -> None:
    """Mask ``secret`` from now on, also as encoded in addresses and headers; under 8 characters it is ignored."""
    if secret is None or len(secret) < SHORTEST:
        return
    spelt = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
    _known.add({secret, quote(secret, safe=""), unquote(secret), spelt})


def register_login(login: str | None) -> None:
    """Mask the password of ``user:password``, and the whole as a header encodes it."""
    if login:
        register_secret(login)
        register_secret(login.partition(":")[2])


def register_address(address: str | None) -> None:
    """Mask the password or token of an address wherever it appears without the address."""
    if address and (login := re.match(r"[^:/]+://([^/?#\s]+)@", address)):
        user, _, password = login[1].partition(":")
        register_secret(unquote(password))
        if _USER.match(address):
            register_secret(unquote(user))


def holds_login(address: str) -> bool:
    """Return whether an address contains a password or a token, even a badly formed one."""
    return bool(_PASSWORD.search(address) or _USER.search(address))


def printable(text: object) -> str:
    """Return untrusted text for one line of a terminal: what would act on it, or reorder it, is escaped."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def mask(text: str) -> str:
    """Return ``text`` with passwords and tokens in addresses and all registered secrets replaced by ``***``."""
    if _known.pattern is not None:
        text = _known.pattern.sub(HIDDEN, text)
    text = _USER.sub(rf"\1{HIDDEN}@", _PASSWORD.sub(rf"\1{HIDDEN}@", text))
    return _PASSWORD_ARGUMENT.sub(rf"\1{HIDDEN}", text)
