"""Random secrets for compose.yaml:  python deploy/make_secrets.py  →  deploy/secrets/ (mode 600, not in git)

Needs nothing but Python. What is there already stays. The containers' user (uid 1000 unless the image was built with another
USER_ID) must be able
to read the files: run this as that user.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

MLFLOW_USER = "m2can"


def write_new(file: Path, content: str) -> None:
    """Write a file of mode 600 that must not exist yet."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(content)


def make(folder: Path) -> list[str]:
    """Write what is missing; returns the names of the new files."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    simple = ("postgres_password", "mlflow_admin_password", "mlflow_secret_key", "s3_access_key", "s3_secret_key")
    made = []
    for name in (*simple, "ray_token"):
        if not (folder / name).exists():
            write_new(folder / name, secrets.token_hex(32))
            made.append(name)

    def read(name: str) -> str:
        return (folder / name).read_text()

    user = f"[mlflow]\nmlflow_tracking_username = {MLFLOW_USER}\nmlflow_tracking_password = {read('mlflow_admin_password')}\n"
    keys = {"accessKey": read("s3_access_key"), "secretKey": read("s3_secret_key")}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    s3 = json.dumps({"identities": [{"name": "mlflow", "credentials": [keys], "actions": actions}]})
    for name, content in (("mlflow_credentials", user), ("s3_config", s3)):
        if not (folder / name).exists():
            write_new(folder / name, content)
            made.append(name)
    if not (folder / "api_tokens.yaml").exists():
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        write_new(folder / "operator_token", token)
        write_new(
            folder / "api_tokens.yaml",
            f"- {{name: operator, sha256: {digest}, scopes: [admin, submit, read, predict]}}\n",
        )
        made += ["operator_token", "api_tokens.yaml"]
    return made


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "secrets"
    print("\n".join(f"{place / name}" for name in make(place)) or f"{place}: nothing is missing")
