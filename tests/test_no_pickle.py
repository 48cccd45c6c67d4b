"""No pickle is loaded on the way from training to serving: a pickle can run any code in who opens it.

Watched while it happens (Python's own audit event), and looked for in the source.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tests import ROOT
from tests.builders import made_up_candidate, made_up_decision, plain_cells, registry_in
from tests.conv_model import conv_model
from validation.images.decode import decode, to_square
from validation.records import ChampionRef
from validation.rules import DataRules

pytestmark = pytest.mark.thorough

FLOORS = ("validation", "infra", "tasks", "flows")
SIDE = 32

# A process that notes whatever is unpickled, then does what serving does: ours, and MLflow's own two ways.
SERVES = """
import sys
loaded = []
sys.addaudithook(lambda event, args: loaded.append(args) if event == "pickle.find_class" else None)
import json, warnings
warnings.simplefilter("ignore")
from pathlib import Path
home, folder = map(Path, sys.argv[1:3])
from infra.settings.settings import Settings
from tasks.commands.predict import predict
settings = Settings(home=home)
ours = predict(settings, [folder]).predictions
import mlflow, numpy, onnxruntime
from validation.images.decode import decode, to_square
mlflow.set_tracking_uri(settings.registry.get_secret_value())
anyone = mlflow.pyfunc.load_model("models:/malaria-cell@champion")
onnx = mlflow.onnx.load_model("models:/malaria-cell@champion")
session = onnxruntime.InferenceSession(onnx.SerializeToString(), providers=["CPUExecutionProvider"])
answers = []
for one in ours:
    image = to_square(decode(Path(one.path).read_bytes(), settings.data), 32)[None]
    theirs = anyone.predict(image)["probability"][0]
    raw = session.run(None, {"images": image})[0][0]
    answers.append([Path(one.path).name, one.probability, float(theirs), float(raw)])
seen = [f"{module}.{name}" for module, name in loaded]
import pickle
pickle.loads(pickle.dumps(Path))
frameworks = sorted({"torch", "fastai", "tensorflow", "keras"} & set(sys.modules))
print(json.dumps({"answers": answers, "unpickled": seen, "noticed": len(loaded) > len(seen), "frameworks": frameworks}))
"""


@pytest.fixture(scope="module")
def model() -> bytes:
    return conv_model(SIDE)


@pytest.fixture
def champion(home: Path, empty_registry: Path, model: bytes) -> ChampionRef:
    registry: Registry = registry_in(home, empty_registry)
    candidate = made_up_candidate(model)
    reference = registry.register(candidate.model_copy(update={"side": SIDE}), model, made_up_decision())
    registry.set_champion(reference.version)
    return reference


def test_serving_unpickles_nothing_and_agrees_with_mlflow_to_the_last_bit(
    home: Path, champion: ChampionRef, model: bytes, tmp_path: Path
) -> None:
    del champion
    (tmp_path / "cells").mkdir()
    cells = {Path(key).name: data for key, data in plain_cells(6, 4).items()}
    for name, data in cells.items():
        (tmp_path / "cells" / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVES, str(home), str(tmp_path / "cells")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["unpickled"] == []
    assert told["noticed"], "the audit hook notices a pickle when there is one"
    assert told["frameworks"] == []
    file = ModelFile(model)
    assert {name for name, *_ in told["answers"]} == set(cells)
    for name, ours, pyfunc, onnx in told["answers"]:
        score = file.score(to_square(decode(cells[name], DataRules()), SIDE)[np.newaxis])[0]
        assert ours == pyfunc == onnx == float(score)
    # The scores differ, so that equal ones say something.
    assert len({ours for _, ours, *_ in told["answers"]}) == len(cells)


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(ROOT)), node


def test_no_module_imports_a_pickler() -> None:
    picklers = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not picklers & {name.split(".")[0] for name in names}, path


def test_nothing_that_unpickles_is_called() -> None:
    seen = 0
    for path, call in calls():
        name = ast.unparse(call.func)
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name.rpartition(".")[2] not in {"load_learner", "read_pickle", "unsafe_load"}, path
        assert name not in {"torch.load", "joblib.load"}, path
        if name in {"np.load", "numpy.load"}:
            seen += 1
            assert told.get("allow_pickle") == "False", f"{path}: {ast.unparse(call)}"
        if name.endswith("load_model") and "mlflow" not in name:
            # Keras: a .keras file may hold pickled lambdas, which safe mode refuses; it is the default.
            assert told.get("safe_mode", "True") == "True", path
    assert seen, "the rule on np.load has something to look at"
