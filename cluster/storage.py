"""Storage of slides and everything derived from them: an encrypted, versioned, logged bucket.

It treats everything stored here as patient data: nothing is public, and nothing is deleted with the
stack. It knows nothing of slides and cases.
"""

from __future__ import annotations

from typing import Any

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

# Every bucket is private, reached by TLS 1.2 or later only, versioned, and kept when its stack is
# deleted.
PRIVATE: dict[str, Any] = {
    "block_public_access": s3.BlockPublicAccess.BLOCK_ALL,
    "enforce_ssl": True,
    "minimum_tls_version": 1.2,
    "object_ownership": s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
    "removal_policy": RemovalPolicy.RETAIN,
    "versioned": True,
}
SIX_YEARS = Duration.days(6 * 365 + 2)
"""How long records of who did what are kept: 164.316(b)(2)(i)."""


class Storage(Stack):
    """The data bucket, the bucket for its access log, and the key that encrypts the data."""

    key: kms.Key
    data: s3.Bucket

    def __init__(self, scope: Construct, name: str) -> None:
        super().__init__(
            scope,
            name,
            description="Acinus: slides and everything derived from them",
            termination_protection=True,
        )
        self.key = kms.Key(
            self,
            "Key",
            description="Encrypts slides and everything derived from them",
            enable_key_rotation=True,
            pending_window=Duration.days(30),
            removal_policy=RemovalPolicy.RETAIN,
        )
        access_log = s3.Bucket(
            self,
            "AccessLog",
            encryption=s3.BucketEncryption.S3_MANAGED,
            lifecycle_rules=[
                s3.LifecycleRule(
                    expiration=SIX_YEARS, noncurrent_version_expiration=Duration.days(30)
                )
            ],
            **PRIVATE,
        )
        self.data = s3.Bucket(
            self,
            "Data",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,  # few requests to KMS, not one for each range of tiles
            server_access_logs_bucket=access_log,
            server_access_logs_prefix="data/",
            lifecycle_rules=[
                # A browser that is closed during an 8 GB upload leaves parts of it in the bucket.
                s3.LifecycleRule(abort_incomplete_multipart_upload_after=Duration.days(7)),
                s3.LifecycleRule(noncurrent_version_expiration=Duration.days(90)),
            ],
            **PRIVATE,
        )
        CfnOutput(
            self,
            "DataBucket",
            value=self.data.bucket_name,
            description="Root of all storage URIs: s3://<this>/",
        )
        CfnOutput(
            self, "DataKey", value=self.key.key_arn, description="Key that encrypts the data bucket"
        )
