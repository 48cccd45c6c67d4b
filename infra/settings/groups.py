"""The groups of settings that are not rules of judgement (those are in validation/rules.py)."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from infra.settings.secrets import SecretAddress
from validation.errors import UsageError
from validation.patients import FOLDS
from validation.records import CLASSES
from validation.redaction import holds_login
from validation.rules import Rules, one_group

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def without_login(value: str | None) -> str | None:
    """Return an address, which must not contain a password or token, since it is shown wherever it is used."""
    if value and holds_login(value):
        raise ValueError("this address must not contain a password or token: it would be shown")
    urlsplit(value or "")  # a ValueError says what is wrong with it
    return value


def _web_address(value: str | None) -> str | None:
    """Return an address that a browser opens, without a final slash."""
    parts = urlsplit(without_login(value) or "")
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError("expected the address of a site, for instance https://reports.example.org")
    return value.rstrip("/") if value else None


def ip_address(value: str) -> str:
    """Return an IP address to serve on, which may be called localhost."""
    if not is_loopback(value):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError("expected an IP address, for instance 127.0.0.1, 0.0.0.0 or 192.168.1.10") from None
    return value


def refuse_open(setting: str, host: str, login: str | None) -> None:
    """Refuse to serve other machines without a password.

    Raises:
        UsageError: a client of Prefect's server can start runs and read logs, a reader of reports sees patients' cells.
    """
    if not is_loopback(host) and not login:
        raise UsageError(
            f"{setting} is {host}: other machines would reach it without a password",
            "set RETRAIN_UP__AUTH=user:password (or RETRAIN_UP__AUTH_FILE), or leave the host at 127.0.0.1",
        )


def reachable(host: str) -> str:
    """Return how this machine's own processes write the host of a server that listens on ``host``."""
    host = LOOPBACK if host in ("0.0.0.0", "localhost") else "::1" if host == "::" else host  # noqa: S104
    return f"[{host}]" if ":" in host else host


def well_formed(value: SecretAddress) -> SecretAddress:
    """Return an address that may contain a password; that of a file names it from the root."""
    address = value.get_secret_value()
    urlsplit(address)
    if re.match(r"sqlite[+\w]*:///[^/]", address):
        raise ValueError("a worker runs in another folder: expected sqlite:////FOLDER/FILE, with four slashes")
    return value


def names(value: Any) -> Any:
    """Return a tuple of names, given with commas between them or as a list."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


MAIL = r"^([^@\s]+@[^@\s]+)?$"
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(names)]


def class_names(value: Any) -> Any:
    """Return a dictionary of class names, given as ``infected=Parasitized,healthy=Uninfected`` or as one."""
    if not isinstance(value, str):
        return value
    pairs = [part.rpartition("=")[::2] for part in value.split(",") if part.strip()]
    return {name.strip(): label.strip() for name, label in pairs}


def _are_classes(names: dict[str, str]) -> dict[str, str]:
    for name, label in names.items():
        if not name or label not in CLASSES:
            raise ValueError(f"expected NAME=CLASS with a class of {' and '.join(CLASSES)}, got {name}={label}")
    return names


ClassNames = Annotated[dict[str, str], NoDecode, BeforeValidator(class_names), AfterValidator(_are_classes)]


class UpSettings(Rules):
    """What ``retrain up`` starts on this machine."""

    host: str = Field(
        LOOPBACK, min_length=1, description="IP address of Prefect's server and page; any but loopback needs `auth`"
    )
    port: int = Field(4200, ge=1, le=65_535, description="port of Prefect's server and page")
    auth: SecretStr | None = Field(None, description="`user:password` of Prefect's server and page")
    database: SecretAddress = Field(
        SecretAddress(""),
        description="Prefect's database, of this machine alone: `postgresql://user:password@host/prefect`; "
        "default: SQLite under the home folder",
    )
    gpu_slots: int = Field(0, ge=0, description="concurrent trainings; 0: one per GPU, at least 1")
    train_on_workers: bool = Field(True, description="send trainings to the pool `gpu`, whatever `training.where` is")

    _is_an_address = field_validator("host")(ip_address)

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
        # People paste the plain address; Prefect needs the driver's name in it.
        for plain in ("postgresql://", "postgres://"):
            if value.get_secret_value().startswith(plain):
                return SecretAddress("postgresql+asyncpg://" + value.get_secret_value().removeprefix(plain))
        return well_formed(value)

    @property
    def url(self) -> str:
        """Address of the server for this machine's own processes."""
        return f"http://{reachable(self.host)}:{self.port}/api"


class SiteSettings(Rules):
    """The site of all reports.

    `retrain site` and `retrain up` serve it.
    """

    host: str = Field(LOOPBACK, min_length=1, description="IP address to serve it on; any but loopback needs `up.auth`")
    port: int = Field(8765, ge=0, le=65_535, description="port to serve it on; 0: `retrain up` does not serve it")
    address: Annotated[str | None, AfterValidator(_web_address)] = Field(
        None,
        description="its address as readers reach it, such as `https://reports.example.org`: links on Prefect's and "
        "MLflow's pages and in alerts begin with it; default: host and port",
    )

    _is_an_address = field_validator("host")(ip_address)

    @property
    def base(self) -> str | None:
        """Address that links to its pages begin with; None where it is served nowhere."""
        return self.address or (f"http://{reachable(self.host)}:{self.port}" if self.port else None)


class AboutSettings(Rules):
    """What pages and model cards say about the model and its cells.

    Free text; a page says what is not stated.
    """

    intended_use: str = Field(
        "For sorting single, already segmented cells of thin blood films, and for people who check what it sorts.",
        min_length=1,
        description="what the model is for; that it is not a medical device is always said",
    )
    labelled_by: str = Field("", description="who labelled the cells, and how: the reference standard")
    sites: str = Field("", description="where the films come from: clinics, years, stain, microscopes")
    site_pattern: str = Field(
        "",
        description="regular expression, matched at the start of an image's name; its one group is the site, such as "
        r"`([a-z]+)-`; empty: reports count no sites",
    )
    owner: str = Field("", description="who is responsible for the model")
    licence: str = Field("", description="licence of the model file, such as `Apache-2.0`")
    citation: str = Field("", description="how to cite the model, or the cells it is trained on")
    told: str = Field("", description="who is told of a change of the champion, besides the alerts, and how")

    @field_validator("site_pattern")
    @classmethod
    def _names_a_site(cls, value: str) -> str:
        return one_group(value, "the site") if value else value


class AlertSettings(Rules):
    """Address and thresholds of alerts."""

    webhook: SecretStr | None = Field(None, description="address that every alert is posted to")
    service: Literal["json", "slack", "teams", "sendgrid"] = Field(
        "json", description="what takes the alerts there; sendgrid sends e-mail; json is a plain `alert` and `text`"
    )
    token: SecretStr | None = Field(None, description="token that the service asks for, sent as `Bearer`")
    mail_from: str = Field("", pattern=MAIL, description="sender of the e-mails, which the service has verified")
    mail_to: Names = Field((), description="who gets the e-mails")
    night_hours: float = Field(26.0, gt=0.002, description="hours without a completed night before an alert")
    zombie_seconds: float = Field(
        300.0,
        ge=10,
        description="a run without a heartbeat (every 30 s) for this long is marked crashed, with an alert",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.service == "sendgrid" and not (self.mail_from and self.mail_to and self.token):
            raise ValueError("service sendgrid needs mail_from, mail_to and token")
        return self


class EventSettings(Rules):
    """What starts a night besides the schedule."""

    debounce_minutes: float = Field(
        10.0, gt=0, description="minutes from the first notification of new objects to the start of a night"
    )
    queue: Annotated[str | None, AfterValidator(without_login)] = Field(
        None, description="URL of an SQS queue with notifications of new objects; `retrain up` polls it"
    )
    queue_endpoint: Annotated[str | None, AfterValidator(without_login)] = Field(
        None, description="endpoint of an SQS-compatible service"
    )
    queue_region: str | None = Field(None, description="region of the queue, where boto3 cannot know it")


class TrainingSettings(Rules):
    """What is trained, and where."""

    models: Names = Field(("fastai", "keras"), min_length=1, description="the CNNs to train")
    side: int = Field(64, ge=16, le=512, description="cells are resized to side x side pixels")
    seed: int = Field(1, ge=0, description="seed of every random choice of a training")
    target_sensitivity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the tuning patients' infected cells that the threshold must find, such as `0.97`; "
        "default: the threshold of the best balanced accuracy ([training.md](training.md))",
    )
    members: int = Field(
        FOLDS,
        ge=1,
        le=FOLDS,
        description="networks per CNN, each judged by the fifth of the patients it has not seen; 1: a single split",
    )
    fastai: dict[str, Any] = Field(
        default_factory=dict,
        description="recipe of the fastai CNN (tasks/models/fastai), for instance `RETRAIN_TRAINING__FASTAI__EPOCHS=3`",
    )
    keras: dict[str, Any] = Field(default_factory=dict, description="recipe of the Keras CNN (tasks/models/keras)")
    where: Literal["here", "deployment"] = Field(
        "here", description="`here`: a child process; `deployment`: the Prefect deployment `train/<model>`"
    )
    at_once: int | None = Field(
        None,
        ge=1,
        le=64,
        description="with `here`: members trained at once; default: one per GPU, or one for every two cores as far as "
        "3 GiB of memory each are free. More than one round differently than one, since each has fewer threads",
    )
    deployment_timeout_seconds: float = Field(14_400, gt=0, description="how long to wait for a deployed training")
    unusable_gpu: Literal["warn", "fail"] = Field(
        "warn",
        description="a GPU that a CNN's framework cannot use: `warn` trains on the CPU and says so, `fail` is an error",
    )

    def recipe(self, model: str) -> dict[str, Any]:
        """Return the recipe settings of ``model``."""
        return dict(getattr(self, model, {}))


class WireSettings(Rules):
    """Connections to a store's server.

    With the defaults an object that fails costs 10 s, one that does not answer 2.5 minutes.
    """

    threads: int = Field(32, ge=1, le=256, description="objects fetched concurrently")
    silence_seconds: float = Field(30.0, gt=0, description="a response without a byte for this long is retried")
    retries: int = Field(4, ge=0, le=20, description="retries of a request that failed on the way")
    first_wait_seconds: float = Field(
        0.2, gt=0, description="wait before the first retry; three times as long each time"
    )
    longest_wait_seconds: float = Field(5.0, gt=0, description="longest wait before a retry")
    md5_etags: bool = Field(
        True,
        description="compare an S3 ETag of 32 hex digits with the bytes' MD5; `false` for a server with other ETags "
        "(encryption with KMS or customer keys is detected)",
    )


class PruneSettings(Rules):
    """Retention.

    See [operations.md](operations.md), "What is removed, and when".
    """

    automatic: bool = Field(True, description="prune at the end of every night, not only by `retrain prune`")
    cache_gb: float = Field(50.0, ge=0, description="fetched images on this machine; above it the oldest are removed")
    packs: int = Field(2, ge=1, description="packs kept on this machine")
    scratch_days: float = Field(7.0, ge=0, description="work folders of trainings that failed or were killed")
    downloads_days: float = Field(
        30.0, ge=0, description="archives that an import downloaded, fetch logs of other stores"
    )
    orphan_days: float = Field(
        30.0, ge=0, description="unreferenced objects of store and registry, if also found so three times"
    )
    models_days: float = Field(180.0, ge=0, description="model files of challengers that were never registered")
    models_nights: int = Field(30, ge=1, description="newest decisions whose model files are kept at any age")
    reports_days: float = Field(730.0, ge=0, description="reports and tables of nights that registered no version")
    reports_nights: int = Field(365, ge=1, description="newest decisions whose reports are kept at any age")
    runs_days: float = Field(90.0, ge=1, description="runs in the database of a Prefect server that is started here")
