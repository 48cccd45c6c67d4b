"""Base job templates of the Kubernetes work pools: Prefect's own default plus what this project's jobs need.

``python -m infra.deploy.kubernetes.make cpu`` (or ``gpu``) prints one. Prefect silently ignores a variable that its
template does not use, so each variable that is added here is put into the job at the same time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def default() -> Json:
    """Return the template that Prefect gives a new Kubernetes work pool."""
    import prefect.server.api

    path = Path(prefect.server.api.__file__).parent / "collections_data/views/aggregate-worker-metadata.json"
    known = json.loads(path.read_text())
    template: Json = known["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    return template


def template(pool: str) -> Json:
    """Return the template of a pool, ``cpu`` or ``gpu``."""
    made = default()
    pod = made["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    _settings_from_the_cluster(made, container)
    _harden(pod, container)
    _scratch(made, pod, container)
    if pool == "gpu":
        _gpu(made, pod, container)
    return made


def _add(made: Json, name: str, title: str, description: str, **schema: Any) -> str:
    made["variables"]["properties"][name] = {"title": title, "description": description, **schema}
    return f"{{{{ {name} }}}}"


def _settings_from_the_cluster(made: Json, container: Json) -> None:
    """RETRAIN_... settings from a ConfigMap, identities from a Secret: neither is kept in Prefect's database."""
    config = _add(made, "config_map", "Config map", "holds RETRAIN_... settings", type="string", default="malaria")
    secret = _add(made, "secret", "Secret", "holds AWS_... and passwords", type="string", default="malaria")
    container["envFrom"] = [
        {"configMapRef": {"name": config, "optional": True}},
        {"secretRef": {"name": secret, "optional": True}},
    ]


def _harden(pod: Json, container: Json) -> None:
    pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _scratch(made: Json, pod: Json, container: Json) -> None:
    """Give the job a disk for caches and packs, which may be lost, and more shared memory than 64 MB."""
    disk = _add(made, "data_size", "Data size", "disk for caches and packs", type="string", default="20Gi")
    shared = _add(made, "shm_size", "Shared memory", "of /dev/shm, for data loaders", type="string", default="2Gi")
    pod["volumes"] = [
        {"name": "data", "emptyDir": {"sizeLimit": disk}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
    ]
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - a mount


def _gpu(made: Json, pod: Json, container: Json) -> None:
    """A GPU is asked for as a limit; nodes with one are labelled, and tainted so that nothing else lands there."""
    count = _add(made, "gpu_limit", "GPUs", "GPUs of the job", type="integer", default=1, minimum=1)
    container["resources"]["limits"]["nvidia.com/gpu"] = count
    pod["nodeSelector"] = _add(
        made, "node_selector", "Node selector", "labels of the nodes with GPUs", type="object",
        additionalProperties={"type": "string"}, default={"nvidia.com/gpu.present": "true"},
    )  # fmt: skip
    pod["tolerations"] = _add(
        made, "tolerations", "Tolerations", "of the taints of the nodes with GPUs", type="array",
        items={"type": "object"}, default=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    )  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(template(sys.argv[1]), indent=2) + "\n")
