"""What the services that alerts go to accept, as their documentation has it, behind a loopback address each.

Slack: incoming webhooks (docs.slack.dev/messaging/sending-messages-using-incoming-webhooks); Teams: "post to a channel
when a webhook request is received" (learn.microsoft.com, Adaptive Cards); SendGrid: POST /v3/mail/send.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import serving

TOKEN = "a-token-of-the-service"
CARD = "application/vnd.microsoft.card.adaptive"


def slack(said: dict[str, Any], headers: Mapping[str, str]) -> str:
    """Return the text of a message; raise ValueError as Slack answers."""
    del headers
    _need(set(said) <= {"text", "blocks", "attachments"}, "invalid_payload")
    text = _text(said.get("text"), "no_text", most=40_000)
    _need("<" not in text and ">" not in text, "a link or a mention that nobody meant")
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def teams(said: dict[str, Any], headers: Mapping[str, str]) -> str:
    """Return the text of the one card of a message."""
    del headers
    _need(said["type"] == "message", "type")
    [card] = said["attachments"]
    _need(card["contentType"] == CARD, "contentType")
    content = card["content"]
    _need(content["type"] == "AdaptiveCard" and content["version"] == "1.4", "card")
    _need(all(part["type"] == "TextBlock" for part in content["body"]), "body")
    return _text(content["body"][-1]["text"], "text", most=28_000)


def sendgrid(said: dict[str, Any], headers: Mapping[str, str]) -> str:
    """Return the text of an e-mail."""
    _need(headers.get("Authorization") == f"Bearer {TOKEN}", "The provided authorization grant is invalid")
    _need(set(said) == {"personalizations", "from", "subject", "content"}, "unknown or missing fields")
    addresses = [to["email"] for one in said["personalizations"] for to in one["to"]] + [said["from"]["email"]]
    _need(all(address.count("@") == 1 for address in addresses), "Does not contain a valid address.")
    _text(said["subject"], "subject", most=998)
    [content] = said["content"]
    _need(content["type"] == "text/plain", "content type")
    return _text(content["value"], "content", most=30_000_000)


SERVICES = {"slack": slack, "teams": teams, "sendgrid": sendgrid}


class Services:
    """What came to each of them: the texts that it accepted, and why it refused others."""

    def __init__(self) -> None:
        self.url = ""
        self.accepted: dict[str, list[str]] = {name: [] for name in SERVICES}
        self.refused: list[str] = []


@contextlib.contextmanager
def services() -> Iterator[Services]:
    """Have all of them listen, each under its name."""
    made = Services()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body, name = self.rfile.read(int(self.headers["Content-Length"])), self.path.rpartition("/")[2]
            try:
                _need(self.headers["Content-Type"] == "application/json", "content type")
                made.accepted[name].append(SERVICES[name](json.loads(body), dict(self.headers)))
                self.send_response(202)
            except (ValueError, KeyError, TypeError) as error:
                made.refused.append(f"{name}: {error!r}: {body.decode()}")
                self.send_response(400)
            self.end_headers()

    with serving(Handler) as url:
        made.url = url
        yield made


def _need(true: bool, why: str) -> None:
    if not true:
        raise ValueError(why)


def _text(value: Any, what: str, *, most: int) -> str:
    _need(isinstance(value, str) and 0 < len(value) <= most, what)
    return str(value)
