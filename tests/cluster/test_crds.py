"""The strict reading of a CRD: what it refuses, shown on a small CRD of our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import crds

Json = dict[str, Any]

MICROSCOPE = yaml.safe_load("""
spec:
  group: lab.example
  names: {kind: Microscope}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            status: {type: object}
            spec:
              type: object
              required: [objective, stage]
              properties:
                objective: {type: integer}
                stage: {type: string, default: fixed}
                illumination: {type: string, nullable: true}
                port:
                  anyOf: [{type: integer}, {type: string}]
                  x-kubernetes-int-or-string: true
                  pattern: ^[a-z0-9]+$
                notes: {type: object, x-kubernetes-preserve-unknown-fields: true}
                labels: {type: object, additionalProperties: {type: string}}
                slides:
                  type: array
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [name, stain]
                  items:
                    type: object
                    required: [name, stain]
                    properties:
                      name: {type: string}
                      stain: {type: string, default: HE}
""")
GOOD = yaml.safe_load("""
apiVersion: lab.example/v1
kind: Microscope
metadata: {name: bench-1}
spec:
  objective: 40
  illumination: null
  port: http
  notes: {anything: {goes: [here]}}
  labels: {room: b}
  slides: [{name: a}, {name: a, stain: Ki67}]
""")


@pytest.fixture
def schema() -> Json:
    return crds.schema_of(MICROSCOPE, "v1")


def changed(**fields: object) -> Json:
    manifest: Json = copy.deepcopy(GOOD)
    manifest["spec"] |= fields
    return manifest


def test_a_valid_manifest_has_no_problems(schema: Json) -> None:
    assert crds.problems(GOOD, schema) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"objectiv": 20},
            "$.spec: Additional properties are not allowed ('objectiv' was unexpected)",
        ),
        ({"objective": "40"}, "$.spec.objective: '40' is not of type 'integer'"),
        ({"port": [1]}, "$.spec.port: [1] is not of type 'integer', 'string'"),
        ({"port": "no!"}, "$.spec.port: 'no!' does not match '^[a-z0-9]+$'"),
        ({"labels": {"room": 7}}, "$.spec.labels.room: 7 is not of type 'string'"),
        ({"slides": [{}]}, "$.spec.slides[0]: 'name' is a required property"),
        (
            {"slides": [{"name": "a"}, {"name": "a", "stain": "HE"}]},
            "$.spec.slides: two entries with name=a, stain=HE",
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_path(schema: Json, fields: Json, problem: str) -> None:
    assert crds.problems(changed(**fields), schema) == [problem]


@pytest.mark.parametrize("part", ["apiVersion", "kind", "metadata", "spec"])
def test_a_manifest_has_all_its_parts(schema: Json, part: str) -> None:
    manifest = {name: value for name, value in GOOD.items() if name != part}
    assert crds.problems(manifest, schema) == [f"$: '{part}' is a required property"]


def test_a_manifest_with_status_is_refused(schema: Json) -> None:
    assert crds.problems(GOOD | {"status": {}}, schema) == [
        "$: Additional properties are not allowed ('status' was unexpected)"
    ]


def test_the_command_prints_problems_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(MICROSCOPE))
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(changed(lens=1)))
    unexpected = "$.spec: Additional properties are not allowed ('lens' was unexpected)\n"
    for name, status, output in (("good", 0, ""), ("bad", 1, unexpected)):
        monkeypatch.setattr(
            "sys.argv",
            ["crds", str(tmp_path / f"{name}.yaml"), "--crd", str(tmp_path / "crd.yaml")],
        )
        assert crds.main() == status
        assert capsys.readouterr().out == output
