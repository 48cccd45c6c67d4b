"""The bill of materials names the whole lock and keeps CycloneDX's schema; the audit says when it could not ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.deploy.audit import audit, findings
from infra.deploy.sbom import components_of
from tests import ROOT
from validation.errors import Unreachable


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "infra.deploy.sbom"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_every_locked_package_is_named_with_all_its_hashes(bill: dict[str, Any]) -> None:
    lock = (ROOT / "requirements.txt").read_text()
    pins = re.findall(r"^([a-zA-Z0-9._-]+)==([^ ;\\]+)", lock, re.M)
    assert len(pins) > 100
    named = {(component["name"], component["version"]) for component in bill["components"]}
    assert named == {(name.lower().replace("_", "-").replace(".", "-"), version) for name, version in pins}
    hashes = [found["content"] for c in bill["components"] for found in c["externalReferences"][0]["hashes"]]
    assert sorted(hashes) == sorted(re.findall(r"sha256:([0-9a-f]{64})", lock))
    [torch] = [component for component in bill["components"] if component["name"] == "torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}"
    assert bill["metadata"]["component"]["name"] == "malaria-retraining"


def test_the_bill_is_the_same_for_the_same_lock(bill: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.deploy.sbom"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == bill


def test_the_bill_keeps_the_schema(bill: dict[str, Any]) -> None:
    pytest.importorskip("cyclonedx.schema", reason="cyclonedx-python-lib, which has the schema, is not installed")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bill)) is None
    assert validator.validate_str(json.dumps({**bill, "components": [{"type": "library"}]})) is not None


def test_a_marker_and_odd_names_are_kept() -> None:
    lock = 'Foo_Bar.baz==1.0+cpu ; sys_platform == "linux" \\\n    --hash=sha256:' + "a" * 64 + "\n# b==1\n"
    [found] = components_of(lock)
    assert (found["name"], found["version"]) == ("foo-bar-baz", "1.0+cpu")
    assert found["properties"] == [{"name": "malaria:marker", "value": 'sys_platform == "linux"'}]
    assert len(found["externalReferences"][0]["hashes"]) == 1


def test_a_weakness_is_named_with_what_mends_it_and_what_was_not_asked() -> None:
    answer = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {
                "name": "bad",
                "version": "2",
                "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"], "description": "..."}],
            },
            {"name": "odd", "skip_reason": "not on PyPI"},
        ]
    }
    assert findings(answer) == ["bad 2: PYSEC-1, CVE-1; mended in 3", "odd: not audited: not on PyPI"]


def test_a_database_that_knows_nothing_was_not_asked() -> None:
    answer = {"dependencies": [{"name": "odd", "skip_reason": "not on PyPI"}] * 3}
    with pytest.raises(Unreachable, match="knows none of 3 packages: not on PyPI"):
        findings(answer)


@pytest.mark.parametrize(
    ("code", "said"),
    [("sys.exit('no index here')", "cannot be installed: no index here"), ("pass", "nothing was audited: gone")],
)
def test_an_audit_that_could_not_ask_is_no_good_news(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python itself stands in for the new environment: it makes one whose pip and pip-audit do what ``code`` says."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "if sys.argv[2] == 'venv':\n"
        "    os.makedirs(sys.argv[3] + '/bin'); os.symlink(__file__, sys.argv[3] + '/bin/python')\n"
        f"elif sys.argv[2] == 'pip': {code}\n"
        "else: sys.exit('gone')\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("infra.deploy.audit.sys.executable", str(program))
    with pytest.raises(Unreachable, match=said):
        audit(tmp_path / "requirements.txt")
