"""The house itself: imports point down, each library stays in its room, and every promise of the layout is kept."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("validation", "infra", "tasks", "flows")
STAGES = ("pull", "validate", "split", "pack", "train", "evaluate", "decide", "promote", "report")
FRAMEWORKS = {"torch", "torchvision", "fastai", "fastcore", "tensorflow", "keras"}
ROOMS = {
    "boto3": "infra",
    "botocore": "infra",
    "obstore": "infra",
    "mlflow": "infra",
}
# Where a framework may be imported at all, and only inside functions.
MODEL_MODULES = {
    "tasks/models/fastai_batches.py",
    "tasks/models/fastai_callbacks.py",
    "tasks/models/fastai_ranks.py",
    "tasks/models/fastai_xresnet.py",
    "tasks/models/keras_batches.py",
    "tasks/models/keras_callbacks.py",
    "tasks/models/keras_cnn.py",
}


def sources() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported top-level package, and whether the import runs when the module is imported."""
    tree = ast.parse(path.read_text())
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            deferred.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            yield name.split(".")[0], node not in deferred


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_libraries_stay_in_their_rooms(path: Path) -> None:
    relative = path.relative_to(ROOT)
    floor = FLOORS.index(relative.parts[0])
    for name, at_import in imports(path):
        if name in FLOORS:
            assert FLOORS.index(name) <= floor, f"{relative} imports {name}, which is above it"
        if name in ROOMS:
            assert relative.parts[0] == ROOMS[name], f"{relative} imports {name}, which belongs in {ROOMS[name]}/"
        if name in FRAMEWORKS:
            assert str(relative) in MODEL_MODULES, f"{relative} imports {name}; only a model module may"
            assert not at_import, f"{relative} imports {name} when it is imported"
        if relative.parts[0] == "validation":
            assert name not in {"prefect", *ROOMS, *FRAMEWORKS}, f"{relative} imports {name}: judgement is pure"


def test_importing_the_flows_and_the_command_line_loads_no_framework() -> None:
    code = (
        "import sys, flows.cli, flows.retrain, flows.train, flows.promote, flows.approve\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_needs_neither_prefect_nor_mlflow() -> None:
    code = "import sys, flows.cli\nprint(sorted({'prefect', 'mlflow', 'pandas', 'onnxruntime'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_a_plain_function_and_a_thin_task(name: str) -> None:
    from prefect import Task

    module = importlib.import_module(f"tasks.{name}")
    function, task = getattr(module, name), getattr(module, f"{name}_task")
    assert isinstance(task, Task)
    assert inspect.unwrap(task.fn) is function


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_nothing_large_is_kept_in_the_repository() -> None:
    large = [path for path in tracked() if path.stat().st_size > 1024 * 1024]
    assert large == []


def test_the_lock_names_no_index_and_pins_every_package_by_hash() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if "://" in line]
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pinned) > 100
    assert all("==" in line and line.endswith("\\") for line in pinned)
