"""Base job templates of the Kubernetes work pools: Prefect's own default plus what this project's jobs need.

``python -m infra.deploy.kubernetes.make cpu`` (or ``gpu``) prints one, ``... claims`` the disks that both expect,
``... workers`` what starts a worker for each pool.
Prefect silently ignores a variable that its template does not use, so each variable that is added here is put into the
job at the same time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# CPUs and memory that a job asks a node for, unless its deployment says otherwise: a night, a training.
REQUESTS = {"cpu": ("1", "3Gi"), "gpu": ("2", "8Gi")}


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
    job = made["job_configuration"]["job_manifest"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    # They are the job's: in the pod, where Prefect's default has them, only a lenient server drops them.
    job.update({name: pod.pop(name) for name in ("parallelism", "completions")})
    made["variables"]["properties"]["image"]["default"] = "malaria/orchestration"  # each deployment names its own
    for name, value in zip(("cpu_request", "memory_request"), REQUESTS[pool], strict=True):
        made["variables"]["properties"][name]["default"] = value
    _settings_from_the_cluster(made, container)
    _harden(pod, container)
    _disks(made, pool, pod, container)
    if pool == "gpu":
        _gpu(made, pod, container)
    return made


def claims() -> Json:
    """Return the claims that the pools' jobs mount, one each; a claim on several nodes needs ReadWriteMany."""
    size = {"requests": {"storage": "20Gi"}}
    items = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"malaria-{pool}"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": size},
        }
        for pool in REQUESTS
    ]
    return _list(items)


def workers() -> Json:
    """Return what starts a worker for each pool, with Prefect's image and a role that is allowed what it does.

    The address of the Prefect server is in the ConfigMap ``malaria``, its login in the Secret ``malaria``.
    """
    import prefect

    name = {"name": "malaria-worker"}
    seen, made = ["get", "list", "watch"], ["get", "list", "watch", "create", "update", "patch", "delete"]
    rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": made},
        {"apiGroups": [""], "resources": ["pods", "pods/log", "pods/status", "events"], "verbs": seen},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", **name}
    items: list[Json] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": name,
            "subjects": [{"kind": "ServiceAccount", **name}],
            "roleRef": role,
        },
    ]
    image = f"prefecthq/prefect:{prefect.__version__}-python3.11-kubernetes"
    for pool in REQUESTS:
        labels = {"app": f"malaria-worker-{pool}"}
        pod = {"serviceAccountName": name["name"], "containers": [_worker(pool, image)]}
        items.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": labels["app"]},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            }
        )
    return _list(items)


def _worker(pool: str, image: str) -> Json:
    """Return the container of a pool's worker, which is told of the cluster and of Prefect's server by variables."""
    login, prefix = "PREFECT_API_AUTH_STRING", "PREFECT_INTEGRATIONS_KUBERNETES"
    plain = {
        # Else it writes the login into each job, for all who may read jobs.
        f"{prefix}_WORKER_API_AUTH_STRING_SECRET_NAME": "malaria",
        f"{prefix}_WORKER_API_AUTH_STRING_SECRET_KEY": login,
    }
    others = {
        "PREFECT_API_URL": {"configMapKeyRef": {"name": "malaria", "key": "PREFECT_API_URL"}},
        login: {"secretKeyRef": {"name": "malaria", "key": login, "optional": True}},
        # It looks for jobs where it makes them: all namespaces would need a role in each.
        f"{prefix}_OBSERVER_NAMESPACES": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    }
    return {
        "name": "worker",
        "image": image,
        "args": ["prefect", "worker", "start", "--type", "kubernetes", "--pool", pool, "--install-policy", "never"],
        "env": [
            *({"name": name, "value": value} for name, value in plain.items()),
            *({"name": name, "valueFrom": source} for name, source in others.items()),
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def _list(items: list[Json]) -> Json:
    return {"apiVersion": "v1", "kind": "List", "items": items}


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


def _disks(made: Json, pool: str, pod: Json, container: Json) -> None:
    """Mount a claim for caches and packs, so that no night fetches all cells, and more shared memory than 64 MB."""
    claim = _add(
        made, "data_claim", "Data claim", "claim for caches and packs", type="string", default=f"malaria-{pool}"
    )
    shared = _add(made, "shm_size", "Shared memory", "of /dev/shm, for data loaders", type="string", default="2Gi")
    pod["volumes"] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
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
    asked = sys.argv[1]
    others = {"claims": claims, "workers": workers}
    sys.stdout.write(json.dumps(others[asked]() if asked in others else template(asked), indent=2) + "\n")
