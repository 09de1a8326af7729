"""docs/rayjob.yaml: the names and types that KubeRay and Kubernetes publish accept it, and its numbers fit together."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from workflows.config.load import load

ROOT = Path(__file__).parents[1]
RESOURCES = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 0.001}
CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKER = (*CLUSTER, "workerGroupSpecs", 1)


@pytest.fixture
def job() -> dict[str, Any]:
    read = yaml.safe_load((ROOT / "docs" / "rayjob.yaml").read_text(encoding="utf-8"))
    return json.loads(json.dumps(read))  # YAML's aliases share parts


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    read = closed(json.loads((ROOT / "tests" / "rayjob_schema.json").read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator.check_schema(read)
    return jsonschema.Draft202012Validator(read)


def closed(schema: Any) -> Any:
    """The schema as Kubernetes applies it to what is sent: an object with known fields has no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made


def check(job: dict[str, Any], schema: jsonschema.Draft202012Validator) -> None:
    """What Kubernetes refuses, and flags that `ray start` does not have: KubeRay hands them on as they stand."""
    from ray.scripts.scripts import start

    schema.validate(job)
    flags = {name.removeprefix("--") for parameter in start.params for name in parameter.opts}
    for group in groups(job):
        _known(group["rayStartParams"], flags)
    for part in [job["spec"]["rayClusterSpec"]["autoscalerOptions"], *map(container, groups(job))]:
        _known(part["resources"]["requests"], RESOURCES)
        _known(part["resources"]["limits"], RESOURCES)


def _known(given: dict[str, Any], known: set[str]) -> None:
    assert given.keys() <= known, f"unknown names: {sorted(given.keys() - known)}"


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]


def container(group: dict[str, Any]) -> dict[str, Any]:
    [only] = pod(group)["containers"]
    return only


def amount(quantity: str | int) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def keys(part: Any, *place: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where each key of a manifest stands."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if isinstance(part, dict):
            yield (*place, key)
        yield from keys(value, *place, key)


def at(job: dict[str, Any], place: tuple[str | int, ...]) -> Any:
    part: Any = job
    for key in place:
        part = part[key]
    return part


def test_kuberay_and_ray_accept_the_file(job, schema):
    check(job, schema)


def test_a_misspelled_key_is_refused_wherever_it_stands(job, schema):
    accepted = []
    for place in keys(job):
        wrong = copy.deepcopy(job)
        part = at(wrong, place[:-1])
        part[f"{place[-1]}s"] = part.pop(place[-1])
        try:
            check(wrong, schema)
        except (jsonschema.ValidationError, AssertionError):
            continue
        accepted.append(place[-3:])
    assert {parent for _, parent, _ in accepted} == {"labels", "annotations"}, accepted  # which have any names


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "backoffLimit"), "none"),
        (("spec", "submissionMode"), "K8sJob"),
        ((*CLUSTER, "rayVersion"), 2.6),
        ((*CLUSTER, "authOptions", "mode"), "tokens"),
        ((*HEAD, "rayStartParams", "num-cpus"), 2),
        ((*WORKER, "maxReplicas"), "8"),
        ((*WORKER, "template", "spec", "terminationGracePeriodSeconds"), "90s"),
        ((*HEAD, "template", "spec", "containers", 0, "env", 0, "value"), 60),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(job, schema, place, value):
    at(job, place[:-1])[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError, match=re.escape(repr(value))):
        check(job, schema)


def test_the_run_is_accepted_and_fits_the_pods_at_their_most(job):
    python, flag, module, command, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag, module, command) == ("python", "-m", "workflows", "train")
    workers = load(None, overrides).workers
    gpu = groups(job)[-1]
    limits = container(gpu)["resources"]["limits"]
    each = limits["nvidia.com/gpu"] // workers.gpus
    assert each >= 1 and workers.cpus * each < limits["cpu"]  # a CPU is left for what is not training
    assert workers.count <= gpu["maxReplicas"] * each
    assert workers.wait >= 600  # a node has to come, and an image on it


def test_pods_come_on_demand_and_go_when_idle_and_after_the_run(job):
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] and not spec["suspend"]
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    head, *workers = groups(job)
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in workers)
    gpus = ["nvidia.com/gpu" in container(group)["resources"]["limits"] for group in (head, *workers)]
    assert not gpus[0] and set(gpus[1:]) == {True, False}
    assert all(pod(group)["restartPolicy"] == "Never" for group in groups(job))  # KubeRay asks for it with v2


def test_the_dashboard_is_open_inside_the_cluster_only_and_asks_for_a_token(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP" and "enableIngress" not in cluster["headGroupSpec"]


def test_a_pod_lives_longer_than_a_stopped_run_may_take(job):
    head = container(groups(job)[0])
    [wait] = [int(one["value"]) for one in head["env"] if one["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    for group in groups(job):
        command = " ".join(container(group)["lifecycle"]["preStop"]["exec"]["command"])
        assert wait <= int(re.search(r"sleep (\d+)", command)[1]) < pod(group)["terminationGracePeriodSeconds"]


def test_the_hook_of_workers_is_a_command_that_ray_has(job):
    from ray.scripts.scripts import drain_node

    for group in groups(job)[1:]:
        _, _, script = container(group)["lifecycle"]["preStop"]["exec"]["command"]
        program, command, *arguments = shlex.split(script.partition(";")[0])
        assert (program, command) == ("ray", drain_node.name)
        drain_node.make_context(command, arguments)


def test_object_stores_fit_their_shared_memory_which_is_half_of_the_pods(job):
    for group in groups(job):
        [volume] = [v for v in pod(group)["volumes"] if v["name"] == "shm"]
        assert container(group)["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
        assert volume["emptyDir"]["medium"] == "Memory"
        size, store = amount(volume["emptyDir"]["sizeLimit"]), int(group["rayStartParams"]["object-store-memory"])
        assert store < size == amount(container(group)["resources"]["limits"]["memory"]) / 2


def test_requests_are_the_limits(job):
    for part in [job["spec"]["rayClusterSpec"]["autoscalerOptions"], *map(container, groups(job))]:
        assert part["resources"]["requests"] == part["resources"]["limits"]


def test_secrets_are_named_and_not_told(job):
    for group in groups(job):
        assert container(group)["envFrom"] == [{"secretRef": {"name": "rondo"}}]
        assert not [one for one in container(group)["env"] if re.search("KEY|SECRET|PASSWORD|TOKEN", one["name"])]


def test_pods_run_this_code_with_the_versions_of_constraints_txt(job):
    text = (ROOT / "docs" / "rayjob.yaml").read_text(encoding="utf-8")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert f"ray=={version('ray')}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert {container(group)["image"] for group in groups(job)} == {"IMAGE"}
    assert f"WORKDIR {container(groups(job)[0])['workingDir']}\n" in text
    assert {container(group)["workingDir"] for group in groups(job)} == {"/rondo"}
    copied = {name for line in re.findall(r"^#   COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == {"pyproject.toml", "constraints.txt", "datasets", "models", "workflows"}
    assert all((ROOT / name).exists() for name in copied) and "pip install --no-cache-dir -c constraints.txt" in text
