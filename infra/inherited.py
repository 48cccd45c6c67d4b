"""What a process of this project inherits from the environment of whoever starts it: decided here, by name.

Libraries read some hundred variables, and a notebook, a shell profile or another project has set any of them. So only
what is named in PASSED goes on; what is named in ``fixed`` is set, whatever it was; everything else is absent. REMOVED
names of that rest what would change a night, for the person who wonders. ``RETRAIN_INHERIT`` passes further names on.

The same holds for the libraries' files: those in a person's home and in the folder where a command was typed are not
read (``~/.keras/keras.json``, ``~/.prefect``, ``~/.fastai``, ``matplotlibrc``, ``.env``, ``prefect.toml``). ``~/.aws``,
``~/.mlflow/credentials`` and ``~/.pgpass`` are: they say who one is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

# Who needs it: every process; whoever talks to other machines; a night (with commands and workers); Prefect's server.
EVERY, OUTSIDE, NIGHT, SERVER = "every", "outside", "night", "server"


class Passed(NamedTuple):
    """Variables that are passed on: who gets them, their names (``*`` for any text), and why."""

    to: str
    names: str
    why: str


PASSED = (
    Passed(EVERY, "PATH HOME USER LOGNAME SHELL HOSTNAME TMPDIR TEMP TMP TZ", "the machine and its user"),
    Passed(EVERY, "LANG LANGUAGE LC_*", "how names of files are spelt"),
    Passed(EVERY, "TERM COLORTERM COLUMNS LINES NO_COLOR FORCE_COLOR TTY_COMPATIBLE TTY_INTERACTIVE", "the terminal"),
    Passed(EVERY, "LD_LIBRARY_PATH", "where a driver's libraries are"),
    Passed(EVERY, "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_MPS_*_DIRECTORY CUDA_HOME CUDA_PATH", "which GPUs"),
    Passed(EVERY, "NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES", "which GPUs, in a container"),
    Passed(EVERY, "PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONNOUSERSITE VIRTUAL_ENV", "the packages of the parent"),
    Passed(EVERY, "PYTHONUTF8 PYTHONCOERCECLOCALE", "the parent's spelling of names of files"),
    Passed(EVERY, "PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONUNBUFFERED", "bytecode; when a log is written"),
    Passed(EVERY, "OPENBLAS_CORETYPE OPENBLAS_L2_SIZE", "pinned by a machine's owner: different CPUs round alike"),
    Passed(EVERY, "MALARIA_MACHINE MALARIA_CODE MALARIA_IMAGES", "our own: whose process it is, where its code is"),
    Passed(EVERY, "PREFECT_UI_URL", "where readers reach Prefect's page: links to its forms and in its alerts"),
    Passed(OUTSIDE, "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY", "the way out of this network"),
    Passed(OUTSIDE, "http_proxy https_proxy all_proxy no_proxy", "the same, as others spell it"),
    Passed(OUTSIDE, "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE", "whose certificates are trusted"),
    Passed(OUTSIDE, "OPENSSL_CONF OPENSSL_MODULES", "the machine's rules of encryption"),
    Passed(OUTSIDE, "PGPASSWORD PGPASSFILE PGSSLMODE PGSSLROOTCERT PGSSLCERT PGSSLKEY PGSERVICEFILE", "who we are"),
    Passed(NIGHT, "RETRAIN_*", "our own settings"),
    Passed(NIGHT, "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_SECURITY_TOKEN", "who we are"),
    Passed(NIGHT, "AWS_PROFILE AWS_DEFAULT_PROFILE AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE", "who we are"),
    Passed(NIGHT, "AWS_ROLE_ARN AWS_ROLE_SESSION_NAME AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_*", "who we are"),
    Passed(NIGHT, "AWS_EC2_METADATA_* AWS_METADATA_SERVICE_* AWS_LOGIN_CACHE_DIRECTORY", "who we are"),
    Passed(NIGHT, "AWS_CA_BUNDLE", "whose certificates are trusted"),
    Passed(NIGHT, "AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_*", "where the bucket is"),
    Passed(NIGHT, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS AWS_STS_REGIONAL_ENDPOINTS", "where the bucket is"),
    Passed(NIGHT, "AWS_USE_FIPS_ENDPOINT AWS_USE_DUALSTACK_ENDPOINT", "where the bucket is"),
    Passed(NIGHT, "AWS_SERVER_SIDE_ENCRYPTION AWS_SSE_*", "a bucket's policy may demand it of every write"),
    Passed(NIGHT, "GOOGLE_APPLICATION_CREDENTIALS GOOGLE_SERVICE_ACCOUNT*", "who we are"),
    Passed(NIGHT, "AZURE_STORAGE_* AZURE_CLIENT_* AZURE_TENANT_ID AZURE_AUTHORITY_*", "who we are, and which account"),
    Passed(NIGHT, "AZURE_FEDERATED_TOKEN_FILE AZURE_MSI_* AZURE_IDENTITY_* AZURE_ENDPOINT", "who we are"),
    Passed(NIGHT, "IDENTITY_ENDPOINT IDENTITY_HEADER MSI_ENDPOINT MSI_SECRET", "who we are, on Azure"),
    Passed(NIGHT, "MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN", "who we are"),
    Passed(NIGHT, "MLFLOW_TRACKING_AUTH MLFLOW_TRACKING_AWS_SIGV4 MLFLOW_TRACKING_CLIENT_CERT_PATH", "who we are"),
    Passed(NIGHT, "MLFLOW_TRACKING_SERVER_CERT_PATH MLFLOW_*_TLS", "who is trusted"),
    Passed(NIGHT, "MLFLOW_S3_ENDPOINT_URL MLFLOW_S3_UPLOAD_EXTRA_ARGS", "where a database's artifacts go"),
    Passed(NIGHT, "PREFECT_API_URL PREFECT_API_KEY PREFECT_API_AUTH_STRING", "whose server, who we are"),
    Passed(NIGHT, "PREFECT_CLIENT_CUSTOM_HEADERS", "who we are, to a proxy before the server"),
    Passed(NIGHT, "PREFECT_API_SSL_CERT_FILE PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "who is trusted"),
    Passed(NIGHT, "PREFECT_API_REQUEST_TIMEOUT PREFECT_CLIENT_MAX_RETRIES PREFECT_CLIENT_RETRY_*", "patience"),
    Passed(NIGHT, "PREFECT_WORKER_*_SECONDS PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "how often a worker looks"),
    Passed(NIGHT, "PREFECT_LOGGING_LEVEL", "how much is logged"),
    Passed(NIGHT, "PREFECT__*", "which run this process is: from the worker that started it"),
    Passed(SERVER, "PREFECT_SERVER_DATABASE_PASSWORD", "the password of RETRAIN_UP__DATABASE, kept apart"),
    Passed(SERVER, "PREFECT_SERVER_SERVICES_*_LOOP_SECONDS PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "how often"),
)

# Set unless it was passed on. A busy server costs time and not the night: one on SQLite answers 503 within
# seconds while others write, and 500 where it has run out of connections, which Prefect's client would not ask again.
# It waits 2, 4, 8, ... seconds between its tries, about four minutes in all.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "7", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504"}

# Of all that is absent, what changes a night, a training or a server where it arrives.
REMOVED = (
    ("PREFECT_SERVER_* PREFECT_API_DATABASE_*", "a temporary server would be another's: its login, its database"),
    ("PREFECT_* prefect_*", "retries, caches, results, logging and profiles of other flows"),
    ("MLFLOW_*", "another registry, experiment or run; retries that take minutes"),
    ("OTEL_*", "runs would be reported to another project's collector"),
    ("GX_* GE_*", "validation against a cloud account"),
    ("KERAS_*", "another backend; a limit of epochs or steps"),
    ("TF_[!CV]* TF_CPP_* TF_CUDNN_* TF2_* XLA_*", "other kernels, other rounding, the old Keras"),  # not Terraform's
    ("TORCH* PYTORCH_* ATEN_* CUBLAS_* CUDNN_* NCCL_* CUDA_LAUNCH_BLOCKING NVIDIA_TF32_OVERRIDE", "the same, of torch"),
    ("OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* GOTO_* BLIS_* NUMEXPR_* DNNL_* ONEDNN_*", "threads and kernels: other sums"),
    ("RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT", "a training of several processes"),
    ("DEFAULT_GPU FASTAI_HOME", "fastai's device and files"),
    ("MPLBACKEND MATPLOTLIBRC MPL_* QT_API", "a notebook's backend, which is not installed here; other figures"),
    ("OPENCV_* CV_*", "limits of images, other kernels"),
    ("ORT_* NPY_* NUMPY_* PANDAS_* ARROW_*", "other kernels and behaviour"),
    ("AWS_* BOTO_* BOTOCORE_*", "requests without signature, other checksums, retries and endpoints"),
    ("GOOGLE_* AZURE_*", "requests without signature, other endpoints"),
    ("PG*", "another database than the address names"),
    ("DASK_*", "another cluster"),
    ("PYTHON*", "hash seeds, warnings as errors, assertions left out"),
    ("MALLOC_* GLIBC_TUNABLES LD_PRELOAD LD_AUDIT", "other libraries under every process"),
    ("SSLKEYLOGFILE", "the keys of every connection would be written to it"),
    ("GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE", "the revision of another repository"),
)

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Lists of folders, and files: a child works in another folder.
_FOLDERS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
_PLACES = (
    "TMPDIR TEMP TMP *_FILE *_DIR *_BUNDLE *_CERT_PATH PGPASSFILE PGSSLROOTCERT PGSSLCERT PGSSLKEY "
    "GOOGLE_*_CREDENTIALS RETRAIN_HOME RETRAIN_CONFIG RETRAIN_STORE"
)


def fixed(home: Path, *, runs_days: float) -> dict[str, str]:
    """Return what is set for every process of a night: files under the home folder, no telemetry, few words."""
    return {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_PROFILES_PATH": str(home / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **PATIENCE,
        # The packages use plain logging; this sends it to Prefect's pages.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,infra,validation",
        # By default Prefect keeps every run for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(runs_days * 86_400)),
        "MPLCONFIGDIR": str(home / "cache" / "matplotlib"),
        "MPLBACKEND": "agg",
        "FASTAI_HOME": str(home / "cache" / "fastai"),
        "TORCH_HOME": str(home / "cache" / "torch"),
        "KERAS_HOME": str(home / "cache" / "keras"),
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **MLFLOW,
    }


# What MLflow's client is set to: no telemetry, few words, retries that do not take minutes.
MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output is for the command's own results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def of_a_night(given: Mapping[str, str], set_: Mapping[str, str], inherit: Collection[str] = ()) -> dict[str, str]:
    """Return the environment of a night, and of what it starts, out of ``given``; ``inherit`` names what else stays."""
    kept = {name: value for name, value in given.items() if _recipient(name) or _matches(name, inherit)}
    for name, value in kept.items():
        kept[name] = _absolute(name, value)
    for name in [*kept]:
        if (why := _unusable(name, kept[name])) is not None:
            log.warning("%s is not passed on: %s", name, why)
            del kept[name]
    if any(name.upper() in _PROXIES for name in kept):
        # Prefect's server, and what tests it, are asked here and not at the proxy.
        beside = kept.get("no_proxy") or kept.get("NO_PROXY") or ""
        hosts = [host.strip() for host in beside.split(",") if host.strip()]
        if "*" not in hosts:
            hosts += [host for host in _LOOPBACK if host not in hosts]
        kept |= dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))
    stays = [*inherit, *PATIENCE]
    return {**kept, **{name: value for name, value in set_.items() if not (name in kept and _matches(name, stays))}}


def of_work(night: Mapping[str, str]) -> dict[str, str]:
    """Return of a night's environment what a process needs that only computes: no identity, no server, no proxy."""
    others = ("PREFECT_", "MLFLOW_", "GX_")
    return {name: value for name, value in _for((EVERY,), night) if not name.startswith(others)}


def of_a_server(night: Mapping[str, str]) -> dict[str, str]:
    """Return of a night's environment what Prefect's server needs: nobody's identity, and no other server."""
    return {name: value for name, value in _for((EVERY, OUTSIDE, SERVER), night) if not name.startswith("MLFLOW_")}


def left_out(given: Iterable[str], kept: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what is not kept although a library here would read it, and what that would do."""
    for name in sorted(set(given) - set(kept)):
        for names, why in REMOVED:
            if _matches(name, names.split()):
                yield name, why
                break


def _for(recipients: Collection[str], night: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what these get: theirs by PASSED, and what is in no row of it, since it is set or a person passed it on."""
    return ((name, value) for name, value in night.items() if _recipient(name) in (*recipients, ""))


def _recipient(name: str) -> str:
    """Return who gets a variable by PASSED; nobody: the empty text."""
    return next((row.to for row in PASSED if _matches(name, row.names.split())), "")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _absolute(name: str, value: str) -> str:
    """Return a variable's value with the places that it names as seen from any folder."""
    if name in _FOLDERS:
        return os.pathsep.join(str(Path(part).absolute()) for part in value.split(os.pathsep) if part)
    if value and _matches(name, _PLACES.split()) and "://" not in value:
        return str(Path(value).expanduser().absolute())
    return value


def _unusable(name: str, value: str) -> str | None:
    """Return why a variable would only break every connection, also that to this machine."""
    if name.upper() in _PROXIES and value.lower().startswith("socks"):
        return "the clients used here speak to no SOCKS proxy"
    if name in _CERTIFICATES and value and not Path(value).exists():
        return f"there is no {value}"
    return None
