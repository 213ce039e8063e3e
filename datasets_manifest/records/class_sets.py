"""The classes of several data sets: the same in all of them, their labels in one order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError, composed
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.records.record_values import UNLABELLED


def require_same_classes(manifests: Sequence[LoadedManifest]) -> None:
    """Raises InputError: two data sets have different classes, in whatever order; it names the difference."""
    for other in manifests[1:]:
        first = manifests[0]
        missing = [name for name in first.classes if composed(name) not in map(composed, other.classes)]
        extra = [name for name in other.classes if composed(name) not in map(composed, first.classes)]
        if missing or extra:
            parts = [f"only {first.path} has {', '.join(missing)}"] if missing else []
            parts += [f"only {other.path} has {', '.join(extra)}"] if extra else []
            problem = f"the classes differ from those of {first.path} ({'; '.join(parts)})"
            wanted = f"{first.classes} in any order"
            same = {name.casefold(): name for name in missing}
            if extra and sorted(same) == sorted(name.casefold() for name in extra):
                mapped = ", ".join(f"{name}: {same[name.casefold()]}" for name in extra)
                wanted = f"{first.classes}: they differ by capitals alone, so `labels: {{{mapped}}}` and these classes"
            raise InputError(problem, file=other.path, field="classes", value=other.classes, wanted=wanted)


def remap_labels(table: pa.Table, from_classes: Sequence[str], to_classes: Sequence[str]) -> pa.Table:
    """The table with labels that index `from_classes` turned into labels that index `to_classes`; -1 stays.

    Raises ValueError if a class of `from_classes` is not among `to_classes`.
    """
    # Label -1 picks the last entry, which is -1.
    known = [composed(name) for name in to_classes]
    targets = np.array([*(known.index(composed(name)) for name in from_classes), UNLABELLED], dtype=np.int32)
    column = table.schema.get_field_index("label")
    labels = pa.array(targets[table.column(column).to_numpy()], pa.int32())
    return table.set_column(column, table.schema.field(column), labels)
