"""OPEN FIRST: everything Acinus needs from AWS, as one CDK app that synthesises offline.

    CDK_OUTDIR=out python -m cluster.stacks

writes one CloudFormation template per stack to `out` (default `cdk.out`). The CDK runs in Node.js,
which must be on PATH. Docker, the CDK command line and an AWS account are not needed: account and
Region are those of the deployment, and none is named here.

Every resource is checked against the AWS Solutions and HIPAA Security rules during synthesis. A
finding stops it unless `exceptions.yaml` names its construct, its rule and a reason. An exception
that matches no finding stops it as well:

    ExceptionsError    an entry of exceptions.yaml cannot be used
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aws_cdk import App

EXCEPTIONS = Path(__file__).with_name("exceptions.yaml")
WITHOUT_NODE = (
    "cluster.stacks: the CDK runs in Node.js, which is not on PATH; install a supported release\n"
)
CONTEXT = {
    # Deliveries to the log bucket are allowed by its policy: owner-enforced buckets have no ACLs.
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,
}


def build(outdir: str, exceptions: Path = EXCEPTIONS) -> App:
    """The app with all its stacks and checks; `.synth()` writes the templates to `outdir`."""
    from aws_cdk import App, Tags, Validations  # importing the CDK starts Node.js
    from cdk_nag import AwsSolutionsChecks, HIPAASecurityChecks

    from cluster.exceptions import apply
    from cluster.storage import Storage

    app = App(outdir=outdir, context=CONTEXT)
    Storage(app, "AcinusStorage")
    Tags.of(app).add("application", "acinus")
    rules = [AwsSolutionsChecks(app), HIPAASecurityChecks(app)]
    apply(exceptions, app, rules)
    Validations.of(app).add_plugins(*rules)
    return app


def main() -> int:
    """Synthesise, and print the paths of the templates."""
    if shutil.which(os.environ.get("JSII_NODE", "node")) is None:
        sys.stderr.write(WITHOUT_NODE)
        return 1
    folder = os.environ.get("CDK_OUTDIR", "cdk.out")
    build(folder).synth()
    for template in sorted(Path(folder).glob("*.template.json")):
        print(template)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
