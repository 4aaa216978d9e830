"""ray-cluster.yaml: taken by KubeRay's CRD without an unknown field, and kept to the rules of the
house."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import crds
from tests.support.shared_data import shared_data

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "ray-cluster.yaml"

# What the manifest uses of the CRD, written by hand: it refuses a misspelt field on machines
# without the CRD. A name stands for itself, `name[]` for a list of objects; leaves hold None and
# may contain anything.
RULES = {
    "ingressRules[]": {
        "from[]": {"namespaceSelector": None, "podSelector": None},
        "ports[]": {"port": None, "protocol": None},
    }
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": None,
    "capabilities": {"drop": None},
    "privileged": None,
}
RESOURCES = {"requests": None, "limits": None}
SECRET = {"valueFrom": {"secretKeyRef": {"name": None, "key": None}}}
TEMPLATE = {
    "metadata": {"labels": None},
    "spec": {
        "serviceAccountName": None,
        "automountServiceAccountToken": None,
        "terminationGracePeriodSeconds": None,
        "tolerations[]": {"key": None, "operator": None, "effect": None},
        "securityContext": {
            "runAsNonRoot": None,
            "runAsUser": None,
            "runAsGroup": None,
            "fsGroup": None,
            "fsGroupChangePolicy": None,
            "seccompProfile": {"type": None},
        },
        "containers[]": {
            "name": None,
            "image": None,
            "imagePullPolicy": None,
            "securityContext": CONTAINER_SECURITY,
            "ports[]": {"name": None, "containerPort": None},
            "env[]": {"name": None, "value": None, **SECRET},
            "resources": RESOURCES,
            "volumeMounts[]": {"name": None, "mountPath": None},
        },
        "volumes[]": {
            "name": None,
            "persistentVolumeClaim": {"claimName": None},
            "emptyDir": {"medium": None, "sizeLimit": None},
        },
    },
}
FIELDS: Json = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name": None, "labels": None},
    "spec": {
        "rayVersion": None,
        "authOptions": {"mode": None, "secretName": None},
        "tlsOptions": {"enabled": None},
        "networkPolicy": {"mode": None, "head": RULES, "worker": RULES},
        "gcsFaultToleranceOptions": {
            "backend": None,
            "redisAddress": None,
            "redisUsername": SECRET,
            "redisPassword": SECRET,
        },
        "enableInTreeAutoscaling": None,
        "autoscalerOptions": {
            "version": None,
            "idleTimeoutSeconds": None,
            "upscalingMode": None,
            "securityContext": CONTAINER_SECURITY,
            "resources": RESOURCES,
        },
        "headGroupSpec": {"serviceType": None, "rayStartParams": None, "template": TEMPLATE},
        "workerGroupSpecs[]": {
            "groupName": None,
            "replicas": None,
            "minReplicas": None,
            "maxReplicas": None,
            "rayStartParams": None,
            "template": TEMPLATE,
        },
    },
}


def unknown(node: Any, fields: Json | None, path: str = "$") -> Iterator[str]:
    """Paths of the manifest's fields that `fields` does not know."""
    if fields is None:
        return
    for name, child in node.items():
        if name in fields:
            yield from unknown(child, fields[name], f"{path}.{name}")
        elif f"{name}[]" in fields:
            for index, item in enumerate(child):
                yield from unknown(item, fields[f"{name}[]"], f"{path}.{name}[{index}]")
        else:
            yield f"{path}.{name}"


def as_manifest(fields: Json) -> Json:
    """The smallest object that has every field of `fields`, so that the CRD can judge the names."""
    return {
        name.removesuffix("[]"): (
            [as_manifest(child)] if name.endswith("[]") else as_manifest(child)
        )
        if child
        else None
        for name, child in fields.items()
    }


@pytest.fixture(scope="module")
def schema() -> Json:
    """KubeRay's CRD as a strict schema."""
    data = shared_data()
    path = data / "kuberay-crds" / "ray.io_rayclusters.yaml" if data else None
    if path is None or not path.is_file():
        pytest.skip(
            "KubeRay's CRDs are absent: set ACINUS_SHARED_DATA; the hand-written list of fields "
            "ran instead"
        )
    return crds.schema_of(crds.read_yaml(path), "v1")


@pytest.fixture
def manifest() -> Json:
    return dict(yaml.safe_load(MANIFEST.read_text()))


# Ways to break the manifest that `kubectl apply` without strict validation would swallow without a
# word.
MISTAKES = {
    "maxReplicas: 32": "maxReplica: 32",
    "containerPort: 8265": "containerport: 8265",
    "runAsNonRoot: true": "runAsNonroot: true",
    "authOptions:": "authOption:",
    "minReplicas: 2": "minReplicas: 2\n      minWorkers: 2",
    "claimName: acinus-work": "claim: acinus-work",
}


@pytest.mark.parametrize("right", MISTAKES)
def test_a_misspelt_field_is_refused_by_the_crd(schema: Json, right: str) -> None:
    text = MANIFEST.read_text()
    assert right in text
    broken = yaml.safe_load(text.replace(right, MISTAKES[right]))
    assert [
        line
        for line in crds.problems(broken, schema)
        if "Additional properties are not allowed" in line
    ]


@pytest.mark.parametrize("right", MISTAKES)
def test_a_misspelt_field_is_refused_without_the_crd(right: str) -> None:
    assert list(
        unknown(yaml.safe_load(MANIFEST.read_text().replace(right, MISTAKES[right])), FIELDS)
    )


def test_the_manifest_is_valid_by_the_crd_of_kuberay(schema: Json, manifest: Json) -> None:
    assert crds.problems(manifest, schema) == []


def test_the_manifest_has_no_unknown_field(manifest: Json) -> None:
    assert list(unknown(manifest, FIELDS)) == []


def test_the_hand_written_fields_are_the_crds(schema: Json) -> None:
    assert not [
        line
        for line in crds.problems(as_manifest(FIELDS), schema)
        if "Additional properties" in line
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOptions", "mode"), "none"),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayVersion"), 2.6),
    ],
)
def test_a_wrong_value_is_refused_by_the_crd(
    schema: Json, manifest: Json, path: tuple[str, ...], value: object
) -> None:
    broken = copy.deepcopy(manifest)
    node = broken
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    (problem,) = crds.problems(broken, schema)
    assert problem.startswith(f"$.{'.'.join(path)}: ")


def groups(manifest: Json) -> dict[str, Json]:
    """Head and worker groups by name."""
    spec = manifest["spec"]
    found = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert len(found) >= 2
    return {"head": spec["headGroupSpec"], **found}


def containers(manifest: Json) -> dict[str, Json]:
    """The Ray container of each group."""
    return {
        name: group["template"]["spec"]["containers"][0] for name, group in groups(manifest).items()
    }


def test_the_manifest_runs_the_pinned_ray(manifest: Json) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert manifest["spec"]["rayVersion"] == pinned[1]


def test_ray_requires_token_and_tls(manifest: Json) -> None:
    spec = manifest["spec"]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["tlsOptions"]["enabled"] is True
    assert spec["networkPolicy"]["mode"] == "DenyAllIngress"


def test_the_head_has_no_cpus_and_its_state_survives_it(manifest: Json) -> None:
    spec = manifest["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    redis = spec["gcsFaultToleranceOptions"]
    assert redis["backend"] == "redis"
    variable = redis["redisAddress"].removeprefix("$(").removesuffix(")")
    assert {"redisUsername", "redisPassword"} <= set(redis)
    head = {entry["name"]: entry for entry in containers(manifest)["head"]["env"]}
    assert head[variable]["valueFrom"]["secretKeyRef"] == {"name": "acinus-redis", "key": "address"}


def test_serve_has_its_fast_path_on_every_node(manifest: Json) -> None:
    for name, container in containers(manifest).items():
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1", name
        assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1", name


def test_staged_slides_are_stored_where_all_pods_see_them(manifest: Json) -> None:
    for name, container in containers(manifest).items():
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert environment["ACINUS_STAGING"].startswith(f"{mounts['work']}/"), name


def test_no_container_is_root_or_unbounded(manifest: Json) -> None:
    for name, group in groups(manifest).items():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"] == container["resources"]["limits"], name
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name


def test_secrets_are_references_not_values(manifest: Json) -> None:
    for name, container in containers(manifest).items():
        plain = {entry["name"] for entry in container["env"] if "value" in entry}
        assert not [
            variable for variable in plain if re.search("PASS|TOKEN|SECRET|KEY", variable)
        ], name


def test_every_mount_has_its_volume_and_the_object_store_fits_in_memory(manifest: Json) -> None:
    for name, group in groups(manifest).items():
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        assert set(mounts.values()) == set(volumes), name
        store = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert store["medium"] == "Memory", name
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        # Ray gives its object store 30 % of a node's memory.
        assert float(store["sizeLimit"].removesuffix("Gi")) >= 0.3 * float(
            memory.removesuffix("Gi")
        ), name


def test_gpu_nodes_scale_down_to_zero(manifest: Json) -> None:
    by_name = groups(manifest)
    assert by_name["readers"]["minReplicas"] >= 2  # Serve survives the loss of one node
    assert by_name["gpu"]["minReplicas"] == 0
    assert containers(manifest)["gpu"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
