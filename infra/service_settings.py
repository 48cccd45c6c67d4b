"""Settings of what runs unattended: the one machine, the alerts, and what starts a night besides the clock."""

from __future__ import annotations

import ipaddress

from pydantic import Field, SecretStr, field_validator

from infra.secret_sources import SecretAddress
from validation.hiding import holds_password
from validation.rules import Rules

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def without_password(value: str | None) -> str | None:
    """Return an address that is shown wherever it is used, and therefore may hold no password."""
    if value and holds_password(value):
        raise ValueError("a password has no place in this address: it would be shown")
    return value


class UpSettings(Rules):
    """What ``retrain up`` starts on this machine."""

    host: str = Field(LOOPBACK, min_length=1, description="address that Prefect's server and page are reached by")
    port: int = Field(4200, ge=1, le=65_535, description="port of Prefect's server and page")
    auth: SecretStr | None = Field(
        None, description="user:password of Prefect's server and page; a must where others reach it"
    )
    database: SecretAddress = Field(
        SecretAddress(""), description="Prefect's database; default: SQLite under the home folder"
    )
    gpu_slots: int = Field(0, ge=0, description="trainings at the same time; 0: as many as the GPUs allow, at least 1")

    train_on_workers: bool = Field(True, description="send trainings to the pool gpu, whatever training.where says")

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not is_loopback(value):
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ValueError("expected an IP address, for instance 127.0.0.1, 0.0.0.0 or 192.168.1.10") from None
        return value

    @field_validator("auth")
    @classmethod
    def _has_both(cls, value: SecretStr | None) -> SecretStr | None:
        user, _, password = (value.get_secret_value() if value else "u:p").partition(":")
        if not user or not password:
            raise ValueError("expected user:password")
        return value

    @field_validator("database")
    @classmethod
    def _asynchronous(cls, value: SecretAddress) -> SecretAddress:
        # What people have at hand is the plain address; Prefect wants the driver named.
        for plain in ("postgresql://", "postgres://"):
            if value.get_secret_value().startswith(plain):
                return SecretAddress("postgresql+asyncpg://" + value.get_secret_value().removeprefix(plain))
        return value

    @property
    def url(self) -> str:
        """Where this machine's own processes reach the server."""
        host = LOOPBACK if self.host in ("0.0.0.0", "localhost") else "::1" if self.host == "::" else self.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/api"


class AlertSettings(Rules):
    """Who is told, and when the watchdogs bark."""

    webhook: SecretStr | None = Field(None, description="address that every alert is posted to; a secret")
    night_hours: float = Field(26.0, gt=0.002, description="no completed night for so long: an alert")
    zombie_seconds: float = Field(
        300.0, ge=10, description="a run that was not heard of for so long is dead: it is marked crashed, and an alert"
    )


class EventSettings(Rules):
    """What starts a night besides the clock."""

    debounce_minutes: float = Field(10.0, gt=0, description="a notified night begins so long after the first notice")
    queue: str | None = Field(None, description="address of an SQS queue that the bucket tells of new objects")
    queue_endpoint: str | None = Field(None, description="endpoint of an SQS-compatible service")
    queue_region: str | None = Field(None, description="region of the queue")

    @field_validator("queue", "queue_endpoint")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        return without_password(value)
