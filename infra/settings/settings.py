"""All settings, in one model. Only this module reads them from the environment.

Each is taken from the first of: the environment (``RETRAIN_...``; for secrets also the file that ``..._FILE`` names),
the TOML file ``RETRAIN_CONFIG`` (default ``<home>/retrain.toml``), the defaults. A nested setting is
``RETRAIN_GATE__SENSITIVITY_MARGIN`` in the environment and ``[gate] sensitivity_margin`` in TOML.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as Unparsable

from infra.environment import CODE_ROOT, prefect_api_url
from infra.settings.groups import (
    AboutSettings,
    AlertSettings,
    ClassNames,
    EventSettings,
    Names,
    PruneSettings,
    SiteSettings,
    TrainingSettings,
    UpSettings,
    WireSettings,
    well_formed,
    without_login,
)
from infra.settings.secrets import (
    BLOCK,
    FILE,
    AnySecret,
    SecretAddress,
    fill_in_outside,
    from_files,
    read_block,
    remember_setting,
    secret_settings,
    variable,
)
from validation.digest import digest
from validation.errors import SettingsError
from validation.redaction import HIDDEN, mask
from validation.rules import DataRules, GateRules, PromotionRules, Rules

PREFIX = "RETRAIN_"


class Settings(BaseSettings):
    """Everything that can be set. ``retrain settings`` prints it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        # A compose file passes unset variables on as empty text.
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(
        description="folder for all files on this machine: caches, scratch, reports, Prefect's and MLflow's; default: "
        "`.retrain` in a checkout, else `~/.retrain`; environment only"
    )
    store: str = Field(
        "",
        description="the object store: `file:///folder` (or a path; in the file, from the file's folder), "
        "`s3://bucket/prefix`, `gs://...`, `az://...`; "
        "default: `<home>/store`",
    )
    store_endpoint: str | None = Field(None, description="endpoint of an S3-compatible store")
    store_region: str | None = Field(None, description="region of the bucket")
    registry: SecretAddress = Field(
        SecretAddress(""), description="MLflow tracking URI; default: `sqlite:///<home>/mlflow.db`"
    )
    registry_artifacts: str | None = Field(
        None,
        description="where MLflow keeps files when the registry is a database (a server has its own setting); "
        "default: `<home>/mlflow-artifacts`",
    )
    classes: ClassNames = Field(
        default_factory=dict,
        description="folders under `labeled/` (and in an import) with other names than the classes: "
        "`infected=Parasitized,healthy=Uninfected`",
    )
    engine: str = Field(
        "local",
        pattern=r"^(local|dask|dask\+(tcp|tls)://[^/@\s]+:\d+)$",
        description="what measures and packs: `local`, processes; `dask`, a Dask cluster on this machine; "
        "`dask+tcp://HOST:PORT` (or `tls`), an existing one ([cluster.md](how-to/cluster.md))",
    )
    inherit: Names = Field(
        (),
        description="variables of the environment that are passed on besides those in infra/inherited.py, or instead "
        "of what is set there: `OMP_NUM_THREADS,SLURM_*`",
    )
    wire: WireSettings = WireSettings()
    data: DataRules = DataRules()
    gate: GateRules = GateRules()
    promotion: PromotionRules = PromotionRules()
    training: TrainingSettings = TrainingSettings()
    up: UpSettings = UpSettings()
    site: SiteSettings = SiteSettings()
    about: AboutSettings = AboutSettings()
    alerts: AlertSettings = AlertSettings()
    events: EventSettings = EventSettings()
    prune: PruneSettings = PruneSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            # Variables that name secrets' files are not settings.
            variables = env_settings.env_vars.items()
            env_settings.env_vars = {name: value for name, value in variables if name.upper() not in _SECRET_FILES}
        secrets = InitSettingsSource(settings_cls, from_files(PREFIX, SECRETS, os.environ))
        # load_settings passes the TOML file's values as arguments, so the environment takes precedence over them.
        return env_settings, secrets, init_settings

    @field_validator("home")
    @classmethod
    def _fits_into_an_address(cls, value: Path) -> Path:
        # MLflow's and Prefect's databases, and MLflow's files, would be made beside it.
        if "?" in str(value):
            raise ValueError("a ? ends the address of a database: choose another folder")
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError("its name is not UTF-8, which addresses are: choose another folder") from None
        return value

    @field_validator("store", "store_endpoint", "registry_artifacts")
    @classmethod
    def _holds_no_login(cls, value: str | None) -> str | None:
        # Records, reports and messages show them; credentials have settings of their own.
        return without_login(value)

    @field_validator("registry")
    @classmethod
    def _is_an_address(cls, value: SecretAddress) -> SecretAddress:
        return well_formed(value)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        home = values.get("home") or default_home()
        if not isinstance(home, str | Path):
            return values  # pydantic refuses its type
        home = Path(home).expanduser().absolute()
        store = values.get("store") or (home / "store").as_uri()
        if isinstance(store, str) and "://" not in store:
            # A plain path is accepted here; the rest of the code sees a URI.
            store = Path(store).expanduser().absolute().as_uri()
        return {
            **values,
            "home": home,
            "store": store,
            "registry": values.get("registry") or f"sqlite:///{home / 'mlflow.db'}",
            "registry_artifacts": values.get("registry_artifacts") or (home / "mlflow-artifacts").as_uri(),
        }

    def fingerprint(self) -> str:
        """Return a digest of all settings that can change a night's outcome, which locations cannot."""
        training = self.training.model_dump(
            mode="json", exclude={"where", "at_once", "deployment_timeout_seconds", "unusable_gpu"}
        )
        sections = (self.data, self.gate)
        # Only when it is not the default, so that nights from before this setting existed keep their ids.
        approval = ["person"] if self.promotion.approval == "person" else []
        return digest(*(section.model_dump(mode="json") for section in sections), training, *approval)

    def secrets(self) -> dict[tuple[str, ...], AnySecret]:
        """Return all secrets that are set, by their path."""
        secrets: dict[tuple[str, ...], Any] = {path: reduce(getattr, path, self) for path in SECRETS}
        return {path: secret for path, secret in secrets.items() if secret is not None and secret.get_secret_value()}

    def printable(self) -> dict[str, str]:
        """Return all settings as flat text, with passwords in addresses masked."""
        return dict(_flatten(self.model_dump(mode="json")))

    def described(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yield name, value, default, source and meaning of every setting in effect; passwords masked."""
        given = _read_toml(config_path(), required=False)
        variables = {name.upper() for name, value in os.environ.items() if value}
        for name, value in self.printable().items():
            model, path = type(self), tuple(name.split("."))
            # The parts below a field that is no group, such as a recipe, have no description.
            depth = 2 if isinstance(model.model_fields[path[0]].default, Rules) else 1
            field = (model if depth == 1 else type(model.model_fields[path[0]].default)).model_fields[path[depth - 1]]
            names = [variable(PREFIX, path[:length]) for length in range(1, len(path) + 1)]
            found = next((known for known in names for known in (known, known + FILE) if known in variables), None)
            in_file: Any = given
            for part in path[:depth]:
                in_file = in_file.get(part) if isinstance(in_file, dict) else None
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            shown = dict(_flatten({"": list(default) if isinstance(default, tuple) else default})).get("", "")
            source = found or ("settings file" if in_file is not None else "default")
            yield name, value, shown, source, field.description or ""


def default_home() -> Path:
    """Return the home folder when RETRAIN_HOME is not set: in the checkout, else in the user's home."""
    return (CODE_ROOT if (CODE_ROOT / "prefect.yaml").exists() else Path.home()) / ".retrain"


def config_path() -> Path:
    """Return the path of the settings file."""
    if named := os.environ.get(f"{PREFIX}CONFIG"):
        return Path(named).expanduser()
    return Path(os.environ.get(f"{PREFIX}HOME") or default_home()).expanduser() / "retrain.toml"


def secret_value(secret: SecretStr | None) -> str | None:
    """Return a secret's value, for the one call that needs it."""
    return secret.get_secret_value() if secret else None


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings: of the environment, and of the settings file, or the one at ``path`` instead.

    Raises:
        SettingsError: for unknown or invalid settings, all of them by name, and for a missing or malformed file.
    """
    fill_in_outside(os.environ)
    unknown = [name for name in os.environ if name.startswith(PREFIX) and not _known(name)]
    if unknown:
        raise SettingsError(
            f"unknown setting{'s' * (len(unknown) > 1)} in the environment: {', '.join(sorted(unknown))}",
            "`retrain settings` lists all there are",
        )
    required = bool(path or os.environ.get(f"{PREFIX}CONFIG"))
    path = path or config_path()
    try:
        given = _read_toml(path, required=required)
        if isinstance(store := given.get("store"), str) and store and "://" not in store:
            given["store"] = str(path.absolute().parent / Path(store).expanduser())  # whatever folder a command runs in
        settings = _with_blocks(Settings(**given))
    except Unparsable as error:
        named = re.search(r'field "(\w+)"', str(error))
        name = f"{PREFIX}{named[1].upper()}" if named else f"{PREFIX}..."
        raise SettingsError(
            f"setting {name} is a group, expected as JSON: {error.__cause__}", f"set its parts one by one: {name}__..."
        ) from None
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_explain(problem, path) for problem in error.errors()), "`retrain settings` lists all there are"
        ) from None
    for where, secret in settings.secrets().items():
        remember_setting(where, secret)
    return settings


SECRETS = secret_settings(Settings)
_SECRET_FILES = {variable(PREFIX, path) + FILE for path in SECRETS}


def _with_blocks(settings: Settings) -> Settings:
    """Return the settings with references to Prefect's Secret blocks replaced by what these contain."""
    for path, secret in settings.secrets().items():
        value = secret.get_secret_value()
        if value.startswith(BLOCK):
            name = variable(PREFIX, path)
            read = read_block(name, value.removeprefix(BLOCK), prefect_api_url())
            first, *rest = path
            group = getattr(settings, first)
            # The group is created again, so that the secret is validated like any other value.
            new = type(group)(**{**dict(group), rest[0]: read}) if rest else SECRETS[path](read)
            settings = settings.model_copy(update={first: new})
    return settings


def _known(name: str) -> bool:
    if name in _SECRET_FILES:
        return True
    first, nested, _ = name.removeprefix(PREFIX).lower().partition("__")
    field = Settings.model_fields.get(first)
    if field is None:
        return first == "config" and not nested
    return not nested or isinstance(field.default, Rules)


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise SettingsError(f"no settings file at {path}", "correct or unset RETRAIN_CONFIG") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}", "correct the file") from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}", "correct or unset RETRAIN_CONFIG") from None


def _explain(problem: Any, path: Path) -> str:
    """Return which setting is wrong, by both its names, and why."""
    where = tuple(map(str, problem["loc"]))
    name, places = ".".join(where), f"(environment: {variable(PREFIX, where)}; file: {path})"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name} {places}"
    # A group that contains a secret is not shown either.
    secret = any(where == path[: len(where)] for path in SECRETS)
    value = HIDDEN if secret else mask(repr(problem["input"]))
    return f"setting {name} = {value}: {problem['msg'].removeprefix('Value error, ')} {places}"


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            yield f"{prefix}{key}", mask(", ".join(map(str, item)))
        else:
            yield f"{prefix}{key}", "" if item in (None, {}) else mask(str(item))
