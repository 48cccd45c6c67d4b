"""Settings of what runs unattended: the one machine, the alerts, and what starts a night besides the clock."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from validation.rules import Rules


class UpSettings(Rules):
    """What ``retrain up`` starts on this machine."""

    port: int = Field(4200, ge=1, le=65_535, description="port of Prefect's server and page, on loopback")
    database: str = Field("", description="Prefect's database; default: SQLite under the home folder")
    gpu_slots: int = Field(0, ge=0, description="trainings at the same time; 0: as many as there are GPUs, at least 1")

    train_on_workers: bool = Field(True, description="send trainings to the pool gpu, whatever training.where says")

    @field_validator("database")
    @classmethod
    def _asynchronous(cls, value: str) -> str:
        # What people have at hand is the plain address; Prefect wants the driver named.
        for plain in ("postgresql://", "postgres://"):
            if value.startswith(plain):
                return "postgresql+asyncpg://" + value.removeprefix(plain)
        return value


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
