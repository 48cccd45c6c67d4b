"""The house itself: imports point down, each library stays in its room, and every promise of the layout is kept."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from tests import ROOT

LAYERS = ("validation", "infra", "tasks", "flows")
STAGES = ("pull", "validate", "split", "pack", "train", "evaluate", "decide", "promote", "report")
# What a person asks for besides a night: it may use everything in tasks/, and nothing there may use it.
ON_TOP = ("commands", "intake")
FRAMEWORKS = {"torch", "torchvision", "fastai", "fastcore", "tensorflow", "keras"}
HOMES = {"boto3": "infra", "botocore": "infra", "obstore": "infra", "mlflow": "infra"}
# Where a framework may be imported at all, and only inside functions.
MODEL_FOLDERS = ("tasks/models/fastai/", "tasks/models/keras/")


def sources() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that is imported anywhere in a file, and whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text())
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            deferred.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} has a relative import, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node not in deferred


def module_path(name: str) -> Path | None:
    """The file of ours that an imported name comes from, from the root."""
    parts = name.split(".")
    if parts[0] not in LAYERS:
        return None
    for end in (len(parts), len(parts) - 1):
        path = Path(*parts[:end])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / candidate).is_file():
                return candidate
    raise AssertionError(f"{name} is no module of ours")


@functools.cache
def arrows() -> frozenset[tuple[Path, Path]]:
    """All imports between our own files, deferred and TYPE_CHECKING ones too: (importing, imported)."""
    found = set()
    for path in sources():
        for name, _ in imports(path):
            if (imported := module_path(name)) is not None:
                found.add((path.relative_to(ROOT), imported))
    return frozenset(found)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_libraries_stay_where_they_belong(path: Path) -> None:
    relative = path.relative_to(ROOT)
    layer = LAYERS.index(relative.parts[0])
    for full, at_import in imports(path):
        name = full.split(".")[0]
        if name in LAYERS:
            assert LAYERS.index(name) <= layer, f"{relative} imports {name}, which is above it"
        if name in HOMES:
            assert relative.parts[0] == HOMES[name], f"{relative} imports {name}, which belongs in {HOMES[name]}/"
        if name in FRAMEWORKS:
            assert str(relative).startswith(MODEL_FOLDERS), f"{relative} imports {name}; only a model's folder may"
            assert not at_import, f"{relative} imports {name} when it is imported"
        if relative.parts[0] == "validation":
            assert name not in {"prefect", *HOMES, *FRAMEWORKS}, f"{relative} imports {name}: judgement is pure"


def circles(arrows: Iterable[tuple[Path, Path]]) -> list[str]:
    """Folders whose entries (files, and subfolders taken whole) import each other in a circle, with the circle."""
    graphs: dict[Path, dict[str, set[str]]] = {}
    for importing, imported in arrows:
        if importing == imported:
            continue
        depth = next(n for n, (a, b) in enumerate(zip(importing.parts, imported.parts, strict=False)) if a != b)
        graph = graphs.setdefault(Path(*importing.parts[:depth]), {})
        graph.setdefault(importing.parts[depth], set()).add(imported.parts[depth])
    found = []
    for folder, graph in graphs.items():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append(f"{folder}: {' <- '.join(error.args[1])}")
    return found


def test_no_circle_of_files_or_folders() -> None:
    assert circles(arrows()) == []


def test_a_circle_is_found() -> None:
    a, b, c = Path("tasks/x/a.py"), Path("tasks/y/b.py"), Path("tasks/x/c.py")
    assert circles([(a, b), (b, c)]) == ["tasks: x <- y <- x"]
    assert circles([(a, c), (c, a)]) == ["tasks/x: a.py <- c.py <- a.py"]
    assert circles([(a, c), (b, c)]) == []


def test_folders_import_no_stage_and_stages_no_command() -> None:
    stages = {Path(f"tasks/{name}.py") for name in STAGES}
    for importing, imported in arrows():
        if importing.parts[0] != "tasks" or importing.parts[1] in ON_TOP:
            continue
        if len(importing.parts) > 2:
            assert imported not in stages, f"{importing} is part of a folder and imports the stage {imported}"
        assert imported.parts[1] not in ON_TOP, f"{importing} imports {imported}, which only flows/ may"


@pytest.mark.thorough
def test_importing_the_flows_and_the_command_line_loads_no_framework() -> None:
    code = (
        "import sys, flows.cli.main, flows.retrain, flows.train, flows.promote, flows.approve\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_needs_neither_prefect_nor_mlflow() -> None:
    code = (
        "import sys, flows.cli.main\nprint(sorted({'prefect', 'mlflow', 'pandas', 'onnxruntime'} & set(sys.modules)))"
    )
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


def test_github_runs_what_anyone_runs_and_nothing_else() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    [job] = workflow["jobs"].values()
    assert "permissions" not in job
    assert job["steps"] == [{"uses": "actions/checkout@v4"}, {"run": ".ci/run"}]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
