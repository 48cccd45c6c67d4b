"""What an alert's webhook posts, for each kind of service: a JSON text that Prefect's server fills in with Jinja.

Slack's incoming webhooks take ``text`` in their own markup; Teams' workflows an Adaptive Card; SendGrid's interface
(``POST /v3/mail/send``) an e-mail; everything else the plain ``{"alert": ..., "text": ...}``.
"""

from __future__ import annotations

import json
from typing import Any

from infra.settings.groups import AlertSettings

# Values that are told from words of a template when the body is written.
_TEXT, _MARKUP = "\0text\0", "\0markup\0"
_CARD = "application/vnd.microsoft.card.adaptive"
# Slack: https://docs.slack.dev/messaging/formatting-message-text, "Escaping text".
_ESCAPED = 'replace("&", "&amp;") | replace("<", "&lt;") | replace(">", "&gt;")'


def body(settings: AlertSettings, name: str, title: str, text: str) -> str:
    """Return the template of a body. ``name``: the alert's; ``title``: its first words; ``text``: a Jinja template."""
    sentence = f'("{title}: " ~ text)'
    shape = json.dumps(_SHAPES[settings.service](settings, name, title))
    shape = shape.replace(json.dumps(_TEXT), f"{{{{ {sentence} | tojson }}}}")
    shape = shape.replace(json.dumps(_MARKUP), f"{{{{ {sentence} | {_ESCAPED} | tojson }}}}")
    return f"{{% set text %}}{text}{{% endset %}}{shape}"


def headers(settings: AlertSettings) -> dict[str, str]:
    """Return the headers of every alert."""
    token = settings.token.get_secret_value() if settings.token else ""
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}


def _plain(settings: AlertSettings, name: str, title: str) -> dict[str, Any]:
    del settings, title
    return {"alert": name, "text": _TEXT}


def _slack(settings: AlertSettings, name: str, title: str) -> dict[str, Any]:
    del settings, name, title
    return {"text": _MARKUP}


def _teams(settings: AlertSettings, name: str, title: str) -> dict[str, Any]:
    del settings, name
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "text": title, "weight": "Bolder", "wrap": True},
            {"type": "TextBlock", "text": _TEXT, "wrap": True},
        ],
    }
    return {"type": "message", "attachments": [{"contentType": _CARD, "contentUrl": None, "content": card}]}


def _sendgrid(settings: AlertSettings, name: str, title: str) -> dict[str, Any]:
    del name
    return {
        "personalizations": [{"to": [{"email": address} for address in settings.mail_to]}],
        "from": {"email": settings.mail_from},
        "subject": title,
        "content": [{"type": "text/plain", "value": _TEXT}],
    }


_SHAPES = {"json": _plain, "slack": _slack, "teams": _teams, "sendgrid": _sendgrid}
