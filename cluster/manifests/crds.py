"""Check a manifest against a CustomResourceDefinition the way `kubectl apply --validate=strict`
does, without a cluster.

    python -m cluster.manifests.crds ray-cluster.yaml --crd ray.io_rayclusters.yaml

A CRD's schema says what may be there and lets the API server drop what it does not know: a misspelt
field vanishes without a word. `strict` turns it into a JSON schema that refuses such fields. Rules
in CEL (`x-kubernetes-validations`) are not evaluated: they compare an object with its former self.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Json = dict[str, Any]

# The API server's own part of every object; a CRD only says `type: object` here.
OBJECT_META: Json = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def strict(node: Json) -> Json:
    """JSON schema of a node of a CRD's `openAPIV3Schema`: same fields and types, no others."""
    schema = {key: value for key, value in node.items() if key != "description"}
    if node.get("x-kubernetes-int-or-string"):
        del schema["anyOf"]
        schema["type"] = ["integer", "string"]
    if node.get("nullable"):
        schema["type"] = [node["type"], "null"]
    properties = node.get("properties", {})
    if properties:
        schema["properties"] = {name: strict(child) for name, child in properties.items()}
    if isinstance(node.get("items"), dict):
        schema["items"] = strict(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(node["additionalProperties"])
    elif node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    # The API server fills in defaults before it looks for what is required.
    schema["required"] = [
        name for name in node.get("required", []) if "default" not in properties.get(name, {})
    ]
    return schema


def schema_of(crd: Json, version: str) -> Json:
    """Strict JSON schema of whole manifests of one version of a CRD."""
    names = crd["spec"]["names"]
    schemas = {
        entry["name"]: entry["schema"]["openAPIV3Schema"] for entry in crd["spec"]["versions"]
    }
    schema = strict(schemas[version])
    del schema["properties"]["status"]  # written by the operator, never by us
    schema["properties"] |= {
        "apiVersion": {"const": f"{crd['spec']['group']}/{version}"},
        "kind": {"const": names["kind"]},
        "metadata": OBJECT_META,
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _unique_keys(
    _: Any, keys: list[str], items: Any, schema: Json
) -> Iterator[jsonschema.ValidationError]:
    """`x-kubernetes-list-map-keys`: a list whose entries differ in these fields."""
    defaults = {key: schema["items"]["properties"][key].get("default") for key in keys}
    seen = set()
    for item in (item for item in items if isinstance(item, dict)):
        identity = tuple(item.get(key, defaults[key]) for key in keys)
        if identity in seen:
            same = ", ".join(f"{key}={value}" for key, value in zip(keys, identity, strict=True))
            yield jsonschema.ValidationError(f"two entries with {same}")
        seen.add(identity)


def problems(manifest: Json, schema: Json) -> list[str]:
    """Everything the schema refuses in the manifest, one line each with its path; empty if it would
    be taken."""
    keywords = {"x-kubernetes-list-map-keys": _unique_keys}
    draft = jsonschema.Draft202012Validator
    validator = jsonschema.validators.extend(draft, keywords)  # type: ignore[no-untyped-call]
    errors = validator(schema).iter_errors(manifest)
    return sorted(f"{error.json_path}: {error.message}" for error in errors)


def read_yaml(path: Path) -> Json:
    """One YAML document, by the fast loader where it is there: a CRD has 17,000 lines."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: Json = yaml.load(path.read_text(), Loader=loader)
    return document


def main() -> int:
    """Print what a CRD refuses in a manifest; exits with 0 if that is nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.manifests.crds", description=main.__doc__
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument(
        "--crd", type=Path, required=True, help="the CRD's YAML file, as KubeRay ships it"
    )
    options = parser.parse_args()
    manifest = read_yaml(options.manifest)
    found = problems(
        manifest, schema_of(read_yaml(options.crd), manifest["apiVersion"].rpartition("/")[2])
    )
    for line in found:
        print(line)  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
