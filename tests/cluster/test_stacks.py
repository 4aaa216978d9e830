"""The CDK app synthesises offline, its findings are excused one by one, and its templates keep
patient data private."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.stacks import EXCEPTIONS, WITHOUT_NODE

ENTRY = "exceptions.yaml: AcinusStorage/Key AwsSolutions-KMS5"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None, reason="the CDK runs in Node.js, and no `node` is on PATH"
)

Template = dict[str, Any]


def run_python(*arguments: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with only `path` on PATH, and no AWS setting from outside."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | environment | {"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def only_node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with Node.js and nothing else: no docker, no cdk, no aws."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "node").symlink_to(Path(str(NODE)).resolve())
    return folder


@pytest.fixture(scope="module")
def synthesised(only_node: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `python -m cluster.stacks` writes."""
    out = tmp_path_factory.mktemp("cdk")
    done = run_python("-m", "cluster.stacks", path=only_node, CDK_OUTDIR=str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(out / "AcinusStorage.template.json")]
    return out


@pytest.fixture(scope="module")
def storage(synthesised: Path) -> Template:
    """The storage stack's template."""
    return dict(json.loads((synthesised / "AcinusStorage.template.json").read_text()))


def buckets(template: Template) -> dict[str, Template]:
    return {
        name: r["Properties"]
        for name, r in template["Resources"].items()
        if r["Type"] == "AWS::S3::Bucket"
    }


@needs_node
def test_every_finding_is_excused_with_a_reason(synthesised: Path) -> None:
    reports = json.loads((synthesised / "validation-report.json").read_text())["pluginReports"]
    excused = {
        (resource["constructPath"], finding["ruleName"])
        for report in reports
        for finding in report.get("suppressedViolations", [])
        for resource in finding["violatingConstructs"]
    }
    assert [finding for report in reports for finding in report["violations"]] == []
    assert excused == {
        (entry["construct"], entry["rule"]) for entry in yaml.safe_load(EXCEPTIONS.read_text())
    }


@needs_node
def test_a_finding_without_exception_stops_the_synthesis(only_node: Path, tmp_path: Path) -> None:
    entries = [
        e
        for e in yaml.safe_load(EXCEPTIONS.read_text())
        if e["rule"] != "HIPAA.Security-S3DefaultEncryptionKMS"
    ]
    file = tmp_path / "exceptions.yaml"
    file.write_text(yaml.safe_dump(entries))
    program = (
        "import pathlib, sys; from cluster.stacks import build; "
        "build(sys.argv[1], pathlib.Path(sys.argv[2])).synth()"
    )
    done = run_python("-c", program, str(tmp_path / "out"), str(file), path=only_node)
    assert done.returncode != 0
    assert "HIPAA.Security-S3DefaultEncryptionKMS" in done.stdout + done.stderr


UNUSABLE_EXCEPTIONS = """
import pathlib, sys, tempfile
from cluster.exceptions import ExceptionsError
from cluster.stacks import build

for reason in ("because", " "):
    folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
    file = folder / "exceptions.yaml"
    named = "construct: AcinusStorage/Key, rule: AwsSolutions-KMS5"
    file.write_text(f'[{{{named}, reason: "{reason}"}}]')
    try:
        build(str(folder / "out"), file)
    except ExceptionsError as error:
        print(error)
print(sorted({"torch", "ray", "app", "training", "pipelines"} & set(sys.modules)))
"""


@needs_node
def test_an_exception_needs_a_finding_and_a_reason(only_node: Path, tmp_path: Path) -> None:
    done = run_python("-c", UNUSABLE_EXCEPTIONS, str(tmp_path), path=only_node)
    assert done.stdout.splitlines() == [
        f"{ENTRY} matches no finding; remove the entry",
        f"{ENTRY} has no reason; say why the finding is accepted",
        "[]",  # infrastructure synthesises without torch
    ], done.stderr


def test_a_missing_node_js_is_reported(tmp_path: Path) -> None:
    done = run_python("-m", "cluster.stacks", path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == WITHOUT_NODE


@needs_node
def test_cfn_lint_accepts_the_templates(synthesised: Path) -> None:
    linter = [sys.executable, "-c", "from cfnlint.runner import main; main()"]
    templates = sorted(str(path) for path in synthesised.glob("*.template.json"))
    done = subprocess.run(
        [*linter, "--template", *templates], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@needs_node
def test_templates_name_no_account_and_no_region(synthesised: Path) -> None:
    templates = list(synthesised.glob("*.template.json"))
    assert templates
    for template in templates:
        text = template.read_text()
        assert not re.search(r"\b\d{12}\b", text)
        assert not re.search(
            r"\b(us|eu|ap|ca|sa|me|af)-(north|south|east|west|central)\w*-\d\b", text
        )


@needs_node
def test_buckets_are_private_and_kept_when_the_stack_is_deleted(storage: Template) -> None:
    assert len(buckets(storage)) == 2
    for name, bucket in buckets(storage).items():
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}, name
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}, name
        assert storage["Resources"][name]["DeletionPolicy"] == "Retain", name


@needs_node
def test_buckets_refuse_plain_http_and_old_tls(storage: Template) -> None:
    policies = [
        r["Properties"]
        for r in storage["Resources"].values()
        if r["Type"] == "AWS::S3::BucketPolicy"
    ]
    assert {policy["Bucket"]["Ref"] for policy in policies} == set(buckets(storage))
    for policy in policies:
        denied = [
            s["Condition"] for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"
        ]
        assert denied == [
            {"Bool": {"aws:SecureTransport": "false"}},
            {"NumericLessThan": {"s3:TlsVersion": 1.2}},
        ]


@needs_node
def test_data_is_encrypted_with_our_rotating_key_and_access_is_logged(
    storage: Template,
) -> None:
    keys = {
        name: r["Properties"]
        for name, r in storage["Resources"].items()
        if r["Type"] == "AWS::KMS::Key"
    }
    (key,) = keys
    assert keys[key]["EnableKeyRotation"] is True
    (data,) = (bucket for bucket in buckets(storage).values() if "LoggingConfiguration" in bucket)
    (encryption,) = data["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": {"Fn::GetAtt": [key, "Arn"]},
    }
    log = data["LoggingConfiguration"]["DestinationBucketName"]["Ref"]
    assert "LoggingConfiguration" not in buckets(storage)[log]
    uploads = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}, "Status": "Enabled"}
    assert uploads in data["LifecycleConfiguration"]["Rules"]
