"""Messages about an object store that fails: its bucket and endpoint, and which variables are missing here."""

from __future__ import annotations

import os
from pathlib import Path

_NO_ENDPOINT = "Amazon's, as neither AWS_ENDPOINT_URL_S3 nor AWS_ENDPOINT_URL is set"
# One of each tells where credentials come from; on EC2 and in EKS they may come without.
_S3_SOURCES = ("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
               "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip


def described_store(uri: str, error: Exception | None = None) -> str:
    """For example: `bucket shop at http://minio:9000; AWS_ACCESS_KEY_ID is not set`."""
    scheme, _, path = uri.partition("://")
    bucket = path.partition("/")[0]
    if scheme.lower() != "s3":
        return f"bucket {bucket}"
    parts = [f"bucket {bucket} at {endpoint() or _NO_ENDPOINT}"]
    lacking = _lacking()
    if lacking:
        parts.append(f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set")
    elif error is not None and _is_refusal(error):
        parts.append("its keys may not do that: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN")
    if error is not None and "region" in str(error).lower() and not _region():
        parts.append("AWS_REGION is not set")
    return "; ".join(parts)


def with_store(location: object, error: Exception) -> str:
    """An error of reading in words; of a location in a store with what `described_store` says of it."""
    text = str(getattr(error, "strerror", None) or error)
    return f"{text}; {described_store(str(location), error)}" if "://" in str(location) else text


def endpoint() -> str | None:
    """Of S3, as the environment gives it; None: Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _lacking() -> list[str]:
    """The variables without which nobody gives S3's client a key here."""
    home = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    elsewhere = any(os.environ.get(name) for name in _S3_SOURCES) or home.is_file()
    keys = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not os.environ.get(name)]
    return [] if elsewhere else keys


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _is_refusal(error: Exception) -> bool:
    text = str(error).upper().replace(" ", "_")
    return any(word in text for word in ("ACCESS_DENIED", "ACCESSDENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "403"))
