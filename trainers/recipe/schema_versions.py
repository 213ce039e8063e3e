"""What was written by an older version is brought to today's form, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets_manifest.errors import InputError

# Changes a version's content into the next one's, in place; or words: why that cannot be done.
Migration = Callable[[dict[str, Any]], None] | str


def migrate(
    content: dict[str, Any], *, current: int, migrations: Mapping[int, Migration], file: object = None
) -> dict[str, Any]:
    """Bring `content`, in place, from the version that it names to `current`.

    Args:
        migrations: by the version they start from; a version without one has the next one's form.

    Raises:
        InputError: a newer version, one that cannot be migrated, or no version at all.
    """
    found = content.get("schema_version")
    if type(found) is not int or found < 1:
        problem, wanted = "is not a version", f"1 to {current}"
        raise InputError(problem, file=file, field="schema_version", value=found, wanted=wanted)
    if found > current:
        problem = f"was written by a newer version of m2can, with schema version {found}"
        wanted = f"at most {current}, or a newer m2can"
        raise InputError(problem, file=file, field="schema_version", value=found, wanted=wanted)
    for version in range(found, current):
        change = migrations.get(version)
        if isinstance(change, str):
            problem = f"version {version} cannot be brought to version {version + 1}: {change}"
            raise InputError(problem, file=file, field="schema_version", value=found, wanted=f"{version + 1}")
        if change is not None:
            change(content)
    content["schema_version"] = current
    return content
