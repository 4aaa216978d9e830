"""OPEN FIRST: everything Acinus needs from AWS, as one CDK app that synthesises offline.

    CDK_OUTDIR=out python -m cluster.stacks

writes one CloudFormation template a stack to `out` (default `cdk.out`). It needs Node.js on PATH (the CDK runs in it), no
Docker, no CDK command line and no AWS account: account and Region are the deployment's, none is written here.

Every resource is checked against the AWS Solutions and HIPAA Security rules while it synthesises. A finding stops the synthesis
unless `exceptions.yaml` names its construct, its rule and a reason; an exception that excuses nothing stops it as well:

    ExceptionsError    an entry of exceptions.yaml that cannot be used
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
CONTEXT = {
    # The log bucket takes its deliveries by bucket policy: with owner-enforced buckets there are no ACLs to do it by.
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
    """Synthesise and print where the templates lie."""
    if shutil.which(os.environ.get("JSII_NODE", "node")) is None:
        print(
            "cluster.stacks: the CDK runs in Node.js, which is not on PATH; install a supported release",
            file=sys.stderr,
        )  # noqa: T201
        return 1
    folder = os.environ.get("CDK_OUTDIR", "cdk.out")
    build(folder).synth()
    for template in sorted(Path(folder).glob("*.template.json")):
        print(template)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
