"""Makes rayjob_schema.json: names and types of a RayJob, as KubeRay publishes them for version 1.6.2 (Apache-2.0).

KubeRay's definition spells out, a megabyte long, the types of Kubernetes 1.34 wherever it uses one. Here they are
referred to, and come from Kubernetes' own OpenAPI (Apache-2.0), which the package kubernetes-validate carries; what is
KubeRay's own is written down below, after docs/reference/api.md of its repository. To make the file again:

    pip download --no-deps kubernetes-validate==1.37.0
    unzip -p kubernetes_validate-*.whl '*/v1.34.0-local/_definitions.json' | python tests/rayjob_schema.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CORE, META = "io.k8s.api.core.v1.", "io.k8s.apimachinery.pkg.apis.meta.v1."
TEXT, NUMBER, COUNT, SWITCH = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def kubernetes(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name if '.' in name else CORE + name}"}


def kuberay(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


MANAGER = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
POLICY = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
GROUP = {"template": kubernetes("PodTemplateSpec"), "rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS}

KUBERAY: dict[str, dict[str, Any]] = {  # a kind: its fields
    "RayJob": {
        "apiVersion": one_of("ray.io/v1"),
        "kind": one_of("RayJob"),
        "metadata": kubernetes(META + "ObjectMeta"),
        "spec": kuberay("RayJobSpec"),
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": kuberay("RayClusterSpec"),
        "submitterPodTemplate": kubernetes("PodTemplateSpec"),
        "metadata": TEXTS,
        "clusterSelector": TEXTS,
        "submitterConfig": kuberay("SubmitterConfig"),
        "managedBy": MANAGER,
        "deletionStrategy": kuberay("DeletionStrategy"),
        "entrypoint": TEXT,
        "runtimeEnvYAML": TEXT,
        "jobId": TEXT,
        "submissionMode": one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "entrypointResources": TEXT,
        "entrypointNumCpus": NUMBER,
        "entrypointNumGpus": NUMBER,
        "ttlSecondsAfterFinished": COUNT,
        "preRunningDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": SWITCH,
        "suspend": SWITCH,
    },
    "SubmitterConfig": {"backoffLimit": COUNT},
    "DeletionStrategy": {
        "onSuccess": kuberay("DeletionPolicy"),
        "onFailure": kuberay("DeletionPolicy"),
        "deletionRules": array(kuberay("DeletionRule")),
    },
    "DeletionPolicy": {"policy": POLICY},
    "DeletionRule": {"policy": POLICY, "condition": kuberay("DeletionCondition")},
    "DeletionCondition": {
        "ttlSeconds": COUNT,
        "jobStatus": one_of("SUCCEEDED", "FAILED"),
        "jobDeploymentStatus": one_of("Failed"),
    },
    "RayClusterSpec": {
        "upgradeStrategy": kuberay("RayClusterUpgradeStrategy"),
        "authOptions": kuberay("AuthOptions"),
        "suspend": SWITCH,
        "managedBy": MANAGER,
        "autoscalerOptions": kuberay("AutoscalerOptions"),
        "headServiceAnnotations": TEXTS,
        "enableInTreeAutoscaling": SWITCH,
        "gcsFaultToleranceOptions": kuberay("GcsFaultToleranceOptions"),
        "headGroupSpec": kuberay("HeadGroupSpec"),
        "rayVersion": TEXT,
        "workerGroupSpecs": array(kuberay("WorkerGroupSpec")),
    },
    "RayClusterUpgradeStrategy": {"type": one_of("Recreate", "None")},
    "AuthOptions": {"enableK8sTokenAuth": SWITCH, "secretName": TEXT, "mode": one_of("disabled", "token")},
    "AutoscalerOptions": {
        "resources": kubernetes("ResourceRequirements"),
        "image": TEXT,
        "imagePullPolicy": TEXT,
        "securityContext": kubernetes("SecurityContext"),
        "idleTimeoutSeconds": COUNT,
        "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
        "version": one_of("v1", "v2"),
        "env": array(kubernetes("EnvVar")),
        "envFrom": array(kubernetes("EnvFromSource")),
        "volumeMounts": array(kubernetes("VolumeMount")),
    },
    "GcsFaultToleranceOptions": {
        "redisUsername": kuberay("RedisCredential"),
        "redisPassword": kuberay("RedisCredential"),
        "externalStorageNamespace": TEXT,
        "redisAddress": TEXT,
    },
    "RedisCredential": {"valueFrom": kubernetes("EnvVarSource"), "value": TEXT},
    "HeadGroupSpec": {**GROUP, "headService": kubernetes("Service"), "enableIngress": SWITCH, "serviceType": TEXT},
    "WorkerGroupSpec": {
        **GROUP,
        "suspend": SWITCH,
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "idleTimeoutSeconds": COUNT,
        "scaleStrategy": kuberay("ScaleStrategy"),
        "numOfHosts": COUNT,
    },
    "ScaleStrategy": {"workersToDelete": array(TEXT)},
}
REQUIRED = {
    "RayJob": ["apiVersion", "kind", "metadata", "spec"],
    "RayClusterSpec": ["headGroupSpec"],
    "HeadGroupSpec": ["template"],
    "WorkerGroupSpec": ["groupName", "minReplicas", "maxReplicas", "template"],
    "DeletionRule": ["policy", "condition"],
    "GcsFaultToleranceOptions": ["redisAddress"],
}


def plain(schema: Any) -> Any:
    """Without descriptions, defaults and Kubernetes' hints for merging."""
    if isinstance(schema, list):
        return [plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if key not in ("description", "default") and key[:2] != "x-"}
    return {
        key: {name: plain(field) for name, field in part.items()} if key == "properties" else plain(part)
        for key, part in kept.items()
    }


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix("#/$defs/")
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from references(part)


def make(published: dict[str, Any]) -> dict[str, Any]:
    """KubeRay's kinds, and of Kubernetes' those that they refer to."""
    made: dict[str, Any] = {
        kind: {"type": "object", "properties": fields} | ({"required": REQUIRED[kind]} if kind in REQUIRED else {})
        for kind, fields in KUBERAY.items()
    }
    todo = list(references(list(made.values())))
    while todo:
        name = todo.pop()
        if name not in made:
            made[name] = plain(published[name])
            todo += references(made[name])
    return made


if __name__ == "__main__":
    lines = [
        f"{json.dumps(name)}: {json.dumps(schema)}"
        for name, schema in sorted(make(json.load(sys.stdin)["$defs"]).items())
    ]
    note = "names and types of a RayJob: KubeRay 1.6.2, Kubernetes 1.34, Apache-2.0; made by rayjob_schema.py"
    Path(__file__).with_suffix(".json").write_text(
        f'{{"$comment": {json.dumps(note)},\n"$ref": "#/$defs/RayJob",\n"$defs": {{\n' + ",\n".join(lines) + "\n}}\n",
        encoding="utf-8",
    )
