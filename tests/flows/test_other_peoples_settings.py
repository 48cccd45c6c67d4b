"""A night and trainings in an environment full of other people's settings come to what they come to in an empty one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.store.folder import FolderStore
from tests import ROOT
from tests.builders import synthetic_cells
from tests.fleet import fake_environment, fill
from tests.flows.test_nights import SETTINGS
from tests.servers import with_tables
from validation.digest import sha256

# Files that libraries read where a command is typed, and in the home of whoever types it.
BESIDE = {
    ".env": "PREFECT_SERVER_API_AUTH_STRING=them:theirs\nPREFECT_API_KEY=theirs\nPREFECT_API_AUTH_STRING=them:theirs\n",
    "prefect.toml": "this is [not TOML",
    "matplotlibrc": "font.size: 40\naxes.facecolor: black\nsvg.fonttype: path\n",
    "infra.py": "raise SystemExit('another project')",
    "numpy.py": "raise SystemExit('an exercise')",
}
AT_HOME = {
    ".keras/keras.json": json.dumps(
        {"backend": "torch", "floatx": "float16", "epsilon": 1e-2, "image_data_format": "channels_first"}
    ),
    ".prefect/profiles.toml": 'active = "theirs"\n[profiles.theirs]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n',
    ".config/matplotlib/matplotlibrc": "backend: TkAgg\nfont.size: 40\n",
    ".fastai/config.ini": "[DEFAULT]\ndata = /nowhere\n",
    ".great_expectations/great_expectations.conf": "[anonymous_usage_statistics]\nenabled = True\n",
    ".config/dask/theirs.yaml": "scheduler-address: tcp://127.0.0.1:9\n",
}
THEIRS = {
    # Port 9 of loopback: nothing answers.
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("all_proxy", "ALL_PROXY"), "socks5://127.0.0.1:9"),
    **{"no_proxy": ".hospital.example", "SSL_CERT_FILE": "/gone.pem", "REQUESTS_CA_BUNDLE": "/gone.pem"},
    **{"PREFECT_SERVER_API_AUTH_STRING": "them:theirs", "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql://gone/x"},
    **{"PREFECT_PROFILE": "theirs", "PREFECT_TASKS_DEFAULT_RETRIES": "many", "PREFECT_LOGGING_SETTINGS_PATH": "/gone"},
    **{"PREFECT_SERVER_API_BASE_PATH": "/theirs", "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true"},
    **{"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_EXPERIMENT_NAME": "theirs", "MLFLOW_RUN_ID": "0" * 32},
    **{"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    **{"GX_CLOUD_ACCESS_TOKEN": "theirs", "GX_CLOUD_ORGANIZATION_ID": "theirs", "GX_HOME": "/gone"},
    **{"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "/gone", "QT_API": "none"},
    **{"KERAS_BACKEND": "torch", "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1", "TF_USE_LEGACY_KERAS": "1"},
    **{"TF_ENABLE_ONEDNN_OPTS": "0", "XLA_FLAGS": "--no_such_flag", "TF_XLA_FLAGS": "--tf_xla_auto_jit=2"},
    **{"TORCH_LOGS": "+nothing", "PYTORCH_NVML_BASED_CUDA_CHECK": "x", "ATEN_CPU_CAPABILITY": "default"},
    **{"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "DEFAULT_GPU": "3", "FASTAI_HOME": "/gone"},
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "KMP_AFFINITY": "compact"},
    **{"OMP_DYNAMIC": "true", "OMP_SCHEDULE": "dynamic", "GOMP_CPU_AFFINITY": "0", "OMP_STACKSIZE": "16"},
    **{"OPENCV_IO_MAX_IMAGE_PIXELS": "1", "OPENCV_LOG_LEVEL": "DEBUG", "ORT_LOAD_CONFIG_FROM_MODEL": "1"},
    **{
        "PYTHONHASHSEED": "77",
        "PYTHONWARNINGS": "error",
        "PYTHONBREAKPOINT": "gone.gone",
        "PYTHONIOENCODING": "latin-1",
    },
    **{
        "AWS_SKIP_SIGNATURE": "true",
        "BOTO_CONFIG": "/gone",
        "PGHOST": "gone",
        "DASK_SCHEDULER_ADDRESS": "tcp://gone:9",
    },
    **{"GIT_DIR": "/gone", "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "PYTHONSTARTUP": "/gone", "COLUMNS": "20"},
}
# Every process of a person's shell has some of these; nothing else is in the empty environment.
NEEDED = ("PATH", "PYTHONPATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")
COMMAND = "from flows.cli.main import main; main()"
# One member of each CNN, trained as a night does it.
TRAINING = """
import json, sys
from flows.cli.common import prepared_settings
settings = prepared_settings()
from tasks.context import Context
from tasks.train import train
from tasks.training.specs import member_specs
from tests.builders import prepare
context = Context.open(settings)
prepared = prepare(context)
for name in settings.training.models:
    spec = member_specs(settings, name, prepared.split.id)[0]
    member = train(context, spec, prepared.split, prepared.pack)
    losses = [(epoch.train_loss, epoch.valid_loss) for epoch in member.history]
    print(json.dumps([name, member.id, member.model_sha256, losses]))
"""


def run_in(folder: Path, code: str, ours: dict[str, str], *, theirs: bool) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, and with a home, of its own: both empty, or full of other people's settings."""
    beside, person = folder / "here", folder / "person"
    for place, files in ((beside, BESIDE), (person, AT_HOME)):
        place.mkdir(parents=True)
        for name, text in files.items() if theirs else ():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    program = folder / "program.py"  # as an installed command: the folder where it is typed is not on Python's path
    program.write_text(code)
    environment = {"HOME": str(person), **(THEIRS if theirs else {}), **ours}
    return subprocess.run(
        [sys.executable, str(program), "run", "--json"],
        cwd=beside, env=environment, capture_output=True, check=False, timeout=1200,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
    )  # fmt: skip


def made(home: Path) -> dict[str, str]:
    """Return what a night has made, by its key: records by their names, which are digests, and files by their bytes.

    The names of two tables end in digests of what they hold, which is also when an object was seen: those are left out.
    """
    kept = home / "store" / "retraining"
    records = ("snapshots", "validations", "splits", "members", "candidates", "evaluations", "decisions")
    names = (str(path.relative_to(kept)) for name in records for path in (kept / name).rglob("*"))
    found = {re.sub(r"(\.objects|^splits/origins/\d+-[0-9a-f]{24})-[0-9a-f]+", r"\1", name): "" for name in names}
    files = {path.relative_to(kept): sha256(path.read_bytes()) for path in (kept / "members").rglob("*.onnx")}
    return found | {str(path): digest for path, digest in files.items()}


def figures(night: dict[str, Any]) -> list[str]:
    return re.findall(r"<svg.*?</svg>", Path(night["report"]).read_text(), flags=re.DOTALL)


@pytest.mark.longest
@pytest.mark.thorough
@pytest.mark.server
def test_a_night_comes_to_the_same(tmp_path: Path, prefect_database: Path) -> None:
    nights, homes = {}, {}
    for name in ("empty", "theirs"):
        # What an address might take for something else, all in one name.
        homes[name] = home = tmp_path / name / ("home" if name == "empty" else "ho me#%41%zz;é:@{x}$HOME&'\"\\+~\n[*|")
        (home / "store").mkdir(parents=True)
        fill(FolderStore(home / "store"))
        with_tables(home / "prefect", prefect_database)
        whole = fake_environment(tmp_path, home)
        ours = {key: value for key, value in whole.items() if key in NEEDED or key.startswith("RETRAIN_")}
        done = run_in(tmp_path / name, COMMAND, ours, theirs=name == "theirs")
        assert done.returncode == 0, done.stderr
        nights[name] = json.loads(done.stdout.splitlines()[-1])
    assert made(homes["empty"]) == made(homes["theirs"])
    assert figures(nights["empty"]) == figures(nights["theirs"]) != []
    same = ("verdict", "decision", "images", "metrics", "champion_after")
    assert [nights["empty"][key] for key in same] == [nights["theirs"][key] for key in same]
    assert "not passed on: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.longest
@pytest.mark.slow(minutes=2)
@pytest.mark.timeout(1800)
def test_trainings_of_both_cnns_come_to_the_same(tmp_path: Path) -> None:
    told = {}
    for name in ("empty", "theirs"):
        home = tmp_path / name / "home"
        (home / "store").mkdir(parents=True)
        store = FolderStore(home / "store")
        for key, data in synthetic_cells().items():
            store.put(key, data)
        ours = {key: value for key, value in os.environ.items() if key in NEEDED}
        ours |= {**SETTINGS, "RETRAIN_HOME": str(home), "PYTHONPATH": str(ROOT)}
        ours |= {"RETRAIN_DATA__MIN_CELLS_PER_CLASS": "2", "RETRAIN_DATA__MIN_PATIENTS_PER_CLASS": "2"}
        done = run_in(tmp_path / name, TRAINING, ours, theirs=name == "theirs")
        assert done.returncode == 0, done.stderr
        told[name] = done.stdout.splitlines()
    assert len(told["empty"]) == 2
    assert told["empty"] == told["theirs"]
