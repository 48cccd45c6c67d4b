"""Settings of what runs unattended: the one machine, the alerts, and what starts a night besides the clock."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from infra.settings.secrets import (
    SecretAddress,
)
from validation.redaction import holds_password
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


class TrainingSettings(Rules):
    """What is trained, and where."""

    models: Annotated[tuple[str, ...], NoDecode] = Field(("fastai", "keras"), min_length=1)
    side: int = Field(64, ge=16, le=512, description="cells are resized to side x side pixels")
    seed: int = Field(1, ge=0)
    target_sensitivity: float | None = Field(
        None, gt=0, le=1, description="share of infected validation cells that the threshold must find; none: balanced"
    )
    warm: bool = Field(
        False, description="trainings begin with the weights of the champion's night, and take fewer epochs"
    )
    devices: int = Field(
        1, ge=1, le=64, description="GPUs that one training uses at the same time; without a GPU, parts of the CPU"
    )
    fastai: dict[str, Any] = Field(default_factory=dict, description="recipe settings of the fastai CNN")
    keras: dict[str, Any] = Field(default_factory=dict, description="recipe settings of the Keras CNN")
    where: Literal["here", "deployment"] = Field(
        "here", description="'here': a child process; 'deployment': the Prefect deployment train/<model>"
    )
    deployment_timeout_seconds: float = Field(14_400, gt=0, description="how long to wait for a deployed training")

    @field_validator("models", mode="before")
    @classmethod
    def _split_on_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    def recipe(self, model: str) -> dict[str, Any]:
        """Return the recipe settings given for ``model``."""
        return dict(getattr(self, model, {}))


class WireSettings(Rules):
    """How to deal with a store's server. With the defaults a failing object costs 10 s, a silent one 2.5 minutes."""

    threads: int = Field(32, ge=1, le=256, description="objects that are fetched at the same time")
    silence_seconds: float = Field(30.0, gt=0, description="an answer that brings no byte for so long is given up")
    retries: int = Field(4, ge=0, le=20, description="further tries of a request that failed on the way")
    first_wait_seconds: float = Field(0.2, gt=0, description="before the first retry; threefold at each, with jitter")
    longest_wait_seconds: float = Field(5.0, gt=0, description="before any retry at most")
    md5_etags: bool = Field(True, description="an S3 ETag of 32 hex digits is the MD5 of the bytes, and is compared")


class PruneSettings(Rules):
    """When what is removed (docs/operations.md, "What is removed, and when")."""

    automatic: bool = Field(True, description="prune at the end of every night, not only by `retrain prune`")
    cache_gb: float = Field(50.0, ge=0, description="fetched images on this machine; more: the oldest go")
    packs: int = Field(2, ge=1, description="packs that stay on this machine")
    scratch_days: float = Field(7.0, ge=0, description="work folders of trainings that failed or were killed")
    downloads_days: float = Field(30.0, ge=0, description="archives that an import downloaded")
    orphan_days: float = Field(30.0, ge=0, description="what nothing refers to, in the store and in the registry")
    models_days: float = Field(180.0, ge=0, description="model files of challengers that were never registered")
    models_nights: int = Field(30, ge=1, description="newest decisions whose model files stay, however old they are")
    reports_days: float = Field(730.0, ge=0, description="reports and tables of nights that registered no version")
    reports_nights: int = Field(365, ge=1, description="newest decisions whose reports stay, however old they are")
    runs_days: float = Field(90.0, ge=1, description="runs in the database of the Prefect server that we start")
