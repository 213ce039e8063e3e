"""Make the bucket of $ARTIFACTS if it is not there."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import boto3

secrets = Path(os.environ.get("SECRETS", "/run/secrets"))
client = boto3.client(
    "s3",
    endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"),
    aws_access_key_id=os.environ.get("AWS_ACCESS_KEY_ID") or (secrets / "s3_access_key").read_text().strip(),
    aws_secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY") or (secrets / "s3_secret_key").read_text().strip(),
    region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
)
name = urlsplit(os.environ["ARTIFACTS"]).netloc
if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
    client.create_bucket(Bucket=name)
print(f"bucket {name} is there")
