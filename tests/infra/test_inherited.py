"""What a process inherits: each variable by name, and nobody's by chance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra import inherited
from infra.inherited import PASSED, PATIENCE, REMOVED, fixed, left_out, of_a_night, of_a_server, of_work

HOME = Path("/machine")
OURS = fixed(HOME, runs_days=90)
SECRET = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "MLFLOW_TRACKING_PASSWORD": "s",
    "PREFECT_API_KEY": "s",
    "RETRAIN_STORE": "s3://b",
}


def night(**given: str) -> dict[str, str]:
    """What is passed on of ``given``, without what is always set."""
    kept = of_a_night(given, OURS)
    assert OURS.items() <= kept.items()
    return {name: value for name, value in kept.items() if name not in OURS}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PREFECT_SERVER_API_AUTH_STRING",
            "PREFECT_API_DATABASE_CONNECTION_URL",
            "prefect_api_key",
            "PREFECT_PROFILE",
        ),
        *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "OTEL_EXPORTER_OTLP_ENDPOINT", "GX_CLOUD_ACCESS_TOKEN"),
        *("KERAS_MAX_EPOCHS", "TF_USE_LEGACY_KERAS", "XLA_FLAGS", "TORCH_LOGS", "PYTORCH_CUDA_ALLOC_CONF"),
        *("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS", "WORLD_SIZE", "DEFAULT_GPU", "MATPLOTLIBRC"),
        *("OPENCV_IO_MAX_IMAGE_PIXELS", "ORT_LOAD_CONFIG_FROM_MODEL", "AWS_SKIP_SIGNATURE", "AWS_MAX_ATTEMPTS"),
        *("PGHOST", "DASK_CONFIG", "PYTHONHASHSEED", "PYTHONWARNINGS", "LD_PRELOAD", "SSLKEYLOGFILE", "GIT_DIR"),
    ],
)
def test_what_a_library_would_read_is_absent_and_named(name: str) -> None:
    assert name not in night(**{name: "1"})
    assert [removed for removed, _ in left_out([name], {})] == [name]


def test_what_nobody_here_reads_is_absent_and_not_worth_a_word() -> None:
    assert night(COLORFGBG="15;0") == {}
    assert list(left_out(["COLORFGBG"], {})) == []


def test_what_is_set_is_set_whatever_it_was() -> None:
    notebook = "module://matplotlib_inline.backend_inline"
    kept = of_a_night({"MPLBACKEND": notebook, "KERAS_HOME": "/home/me/.keras", "PREFECT_HOME": "/mine"}, OURS)
    assert (kept["MPLBACKEND"], kept["KERAS_HOME"], kept["PREFECT_HOME"]) == (
        "agg", "/machine/cache/keras", "/machine/prefect",
    )  # fmt: skip


def test_a_person_may_pass_on_more() -> None:
    given = {"OMP_NUM_THREADS": "2", "SLURM_JOB_ID": "7", "TF_CPP_MIN_LOG_LEVEL": "0", "OMP_STACKSIZE": "1"}
    kept = of_a_night(given, OURS, ("OMP_NUM_THREADS", "SLURM_*", "TF_CPP_MIN_LOG_LEVEL"))
    assert kept == OURS | {"OMP_NUM_THREADS": "2", "SLURM_JOB_ID": "7", "TF_CPP_MIN_LOG_LEVEL": "0"}
    # Where it was not given, what is set stays set.
    assert of_a_night({}, OURS, ("TF_CPP_MIN_LOG_LEVEL",))["TF_CPP_MIN_LOG_LEVEL"] == "3"


def test_a_persons_own_patience_counts() -> None:
    assert of_a_night({}, OURS).items() >= PATIENCE.items()
    assert of_a_night({"PREFECT_CLIENT_MAX_RETRIES": "0"}, OURS)["PREFECT_CLIENT_MAX_RETRIES"] == "0"


def test_it_is_the_same_a_second_time() -> None:
    once = of_a_night({"http_proxy": "http://proxy:3128", "PATH": "/bin", **SECRET}, OURS)
    assert of_a_night(once, OURS) == once


@pytest.mark.parametrize("given", [{}, {"no_proxy": ".hospital.org"}, {"NO_PROXY": ".hospital.org"}])
def test_loopback_is_never_asked_through_a_proxy(given: dict[str, str]) -> None:
    kept = night(http_proxy="http://proxy:3128", **given)
    hosts = [*dict.fromkeys(given.values()), "127.0.0.1", "localhost", "::1"]
    assert kept["no_proxy"] == kept["NO_PROXY"] == ",".join(hosts)


def test_no_proxy_for_anything_stays_that() -> None:
    assert night(HTTPS_PROXY="http://proxy:3128", NO_PROXY="*")["NO_PROXY"] == "*"
    assert "NO_PROXY" not in night(PATH="/bin")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5h://127.0.0.1:1080"), ("SSL_CERT_FILE", "/gone/ca.pem"), ("AWS_CA_BUNDLE", "/gone/ca.pem")],
)
def test_what_would_break_every_connection_is_left_out_with_a_word(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert night(**{name: value}) == {}
    assert f"{name} is not passed on: " in caplog.text


def test_places_are_named_as_seen_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    given = {"AWS_CA_BUNDLE": "ca.pem", "PYTHONPATH": "src::/opt", "RETRAIN_STORE": "cells", "AWS_REGION": "eu"}
    assert night(**given) == {
        "AWS_CA_BUNDLE": f"{tmp_path}/ca.pem",
        "PYTHONPATH": f"{tmp_path}/src:/opt",
        "RETRAIN_STORE": f"{tmp_path}/cells",
        "AWS_REGION": "eu",
    }
    assert night(RETRAIN_STORE="s3://cells")["RETRAIN_STORE"] == "s3://cells"


def test_a_training_gets_nobodys_identity_and_no_way_out() -> None:
    whole = of_a_night({**SECRET, "PATH": "/bin", "https_proxy": "http://u:p@proxy", "CUDA_VISIBLE_DEVICES": "1"}, OURS)
    work = of_work(whole)
    assert {"PATH", "CUDA_VISIBLE_DEVICES", "MPLBACKEND", "KERAS_HOME"} <= work.keys()
    assert not work.keys() & {*SECRET, "https_proxy", "no_proxy"}
    assert not [name for name in work if name.startswith(("PREFECT_", "MLFLOW_", "RETRAIN_"))]


def test_a_server_gets_the_way_out_and_nobodys_identity() -> None:
    given = {**SECRET, "https_proxy": "http://proxy", "PREFECT_API_URL": "http://other", "MALARIA_MACHINE": "1:2"}
    served = of_a_server(of_a_night(given, OURS))
    assert {"https_proxy", "PREFECT_HOME", "MALARIA_MACHINE"} <= served.keys()
    assert not served.keys() & {*SECRET, "PREFECT_API_URL"}


def test_every_name_is_decided_once() -> None:
    names = [name for row in PASSED for name in row.names.split()]
    assert sorted(names) == sorted(set(names))
    assert not set(names) & (OURS.keys() - PATIENCE.keys())
    assert all(why and row_names.split() for row_names, why in REMOVED)


def test_every_library_is_decided() -> None:
    """A variable that a later version of one invents is removed too, and named."""
    prefixes = ("PREFECT_", "MLFLOW_", "KERAS_", "TF_", "TORCH_", "MPL_", "OPENCV_", "GX_", "AWS_", "OMP_", "PYTHON")
    for prefix in prefixes:
        assert [name for name, _ in left_out([f"{prefix}OF_NEXT_YEAR"], {})], prefix
        assert f"{prefix}OF_NEXT_YEAR" not in night(**{f"{prefix}OF_NEXT_YEAR": "1"})


def test_this_process_keeps_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very environment of the tests, whatever it is, has a PATH and a home afterwards."""
    kept = of_a_night(dict(os.environ), OURS)
    assert kept["PATH"].startswith("/")
    assert kept.get("HOME") == os.environ.get("HOME")
    assert inherited.of_a_night(kept, OURS) == kept
