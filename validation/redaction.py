"""Text without secrets: no password of an address, and no secret that this process was given, wherever it turns up.

What libraries put into their messages cannot be foreseen, so the secrets themselves are remembered and looked for.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import quote, unquote, urlsplit

# A shorter one would be found in innocent words, and hide them.
SHORTEST = 8
HIDDEN = "***"

# Up to the last @ of the word: who forgets to escape one in a password must not see half of it printed.
_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S+@")
_PASSWORD_ARGUMENT = re.compile(r"(?i)\b((?:\w*password|passwd|pwd|secret|token|signature|sig)=)[^&;\s'\"]+")


class _Known:
    """The secrets that this process was given, and the pattern that finds any of them."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.pattern: re.Pattern[str] | None = None

    def add(self, forms: set[str]) -> None:
        if forms <= self.secrets:
            return
        self.secrets |= forms
        # The longest first: one may hold another.
        words = sorted(self.secrets, key=lambda word: (-len(word), word))
        self.pattern = re.compile("|".join(map(re.escape, words)))


_known = _Known()


def register_secret(secret: str | None) -> None:
    """Hide ``secret`` from now on, as it is and as addresses and headers spell it; too short ones are let be."""
    if secret is None or len(secret) < SHORTEST:
        return
    spelt = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
    _known.add({secret, quote(secret, safe=""), unquote(secret), spelt})


def register_login(login: str | None) -> None:
    """Hide the password of ``user:password``, and the whole as a header spells it."""
    if login:
        register_secret(login)
        register_secret(login.partition(":")[2])


def register_address(address: str | None) -> None:
    """Hide the password of an address wherever it turns up without the address."""
    if address and "@" in address:
        login = urlsplit(address).netloc.rpartition("@")[0]
        register_secret(unquote(login.partition(":")[2]))


def holds_password(address: str) -> bool:
    """Return whether an address holds a password, however badly it is written."""
    return _PASSWORD.search(address) is not None


def mask(text: str) -> str:
    """Return ``text`` with passwords in addresses, and every secret that is remembered, replaced by ``***``."""
    if _known.pattern is not None:
        text = _known.pattern.sub(HIDDEN, text)
    return _PASSWORD_ARGUMENT.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1{HIDDEN}@", text))


__all__ = ["HIDDEN", "SHORTEST", "holds_password", "mask", "register_address", "register_login", "register_secret"]
