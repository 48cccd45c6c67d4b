"""What this project is made of, as a CycloneDX 1.6 bill of materials: ``python -m infra.deploy.sbom`` (`make sbom`).

Made from the lock (every package, its version, the hashes of its files) and, where they are installed, the packages'
own words on their licences. The same lock gives the same bill. Needs nothing but Python, nor any network.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from infra.environment import CODE_ROOT
from validation.digest import digest

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)(?: *; *(.*?))?[ \\]*$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

Json = dict[str, Any]


def bill(lock: str, project: Json) -> Json:
    """Return the bill of materials of a lock, as JSON; ``project`` is pyproject.toml's table of that name."""
    root = f"pkg:pypi/{project['name']}@{project['version']}"
    components = components_of(lock)
    references = [component["bom-ref"] for component in components]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Of the content, not of chance or the clock.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest(root, components))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
            }
        },
        "components": components,
        # The lock does not say which package asked for which.
        "dependencies": [{"ref": root, "dependsOn": references}, *({"ref": reference} for reference in references)],
    }


def components_of(lock: str) -> list[Json]:
    """Return the packages of a lock, in its order, each with the hashes of all its files."""
    found: list[Json] = []
    for line in lock.splitlines():
        if pinned := _PIN.match(line):
            found.append(_component(*pinned.groups()))
        elif hashed := _HASH.search(line):
            reference = found[-1]["externalReferences"][0]
            reference["hashes"].append({"alg": "SHA-256", "content": hashed[1]})
    return found


def _component(name: str, version: str, marker: str | None) -> Json:
    canonical = re.sub(r"[-_.]+", "-", name).lower()
    purl = f"pkg:pypi/{canonical}@{version}"
    page = f"https://pypi.org/project/{canonical}/{version}/"
    component: Json = {
        "type": "library",
        "bom-ref": purl,
        "name": canonical,
        "version": version,
        "purl": purl,
        # Of the files that are accepted, of which one is installed: a component's own hashes would mean just one.
        "externalReferences": [{"type": "distribution", "url": page, "hashes": []}],
    }
    if licence := _licence(canonical, version):
        component["licenses"] = [licence]
    if marker:
        component["properties"] = [{"name": "malaria:marker", "value": marker}]
    return component


def _licence(name: str, version: str) -> Json | None:
    try:
        told = metadata(name)
    except PackageNotFoundError:
        return None
    if told["Version"] != version:
        return None
    if "License-Expression" in told:
        return {"expression": told["License-Expression"]}
    line = told["License"].strip() if "License" in told else ""
    # Some put the whole text there.
    return {"license": {"name": line}} if line and "\n" not in line and len(line) < 100 else None


def main() -> None:
    """Print the bill of this checkout."""
    project = tomllib.loads((CODE_ROOT / "pyproject.toml").read_text())["project"]
    made = bill((CODE_ROOT / "requirements.txt").read_text(), project)
    sys.stdout.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
