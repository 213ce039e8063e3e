"""Labels that are no class: all distinct values with their counts, since one look at all of them tells what to map."""

from __future__ import annotations

from dataclasses import dataclass

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.record_files import RawRecord
from datasets_manifest.records.record_values import ValueFault

_SHOWN = 10  # values in an error
_KEPT = 1000  # distinct values; a column of prose given as labels has no more to tell


@dataclass
class _Fault:
    first: InputError
    count: int = 0


class LabelFaults:
    """Collects the faults of one split."""

    def __init__(self) -> None:
        self.records = 0
        self._by_value: dict[str, _Fault] = {}

    def add(self, fault: ValueFault, file: Location, record: RawRecord) -> None:
        self.records += 1
        value = repr(fault.value)[:80]
        if value not in self._by_value and len(self._by_value) < _KEPT:
            self._by_value[value] = _Fault(fault.located(file, record))
        if value in self._by_value:
            self._by_value[value].count += 1

    def lines(self) -> list[str]:
        """Every distinct value: how often it stands, where first, and what was wanted."""
        faults = sorted(self._by_value.items(), key=lambda item: -item[1].count)
        return [
            f"{value}: {fault.count:,} record{'s' if fault.count > 1 else ''}, first {_place(fault.first)}"
            for value, fault in faults
        ]

    @property
    def wanted(self) -> str | None:
        return next((fault.first.wanted for fault in self._by_value.values()), None)

    def raise_first(self) -> None:
        """Raises InputError for the first fault, with the other values beside it; nothing if there is none."""
        if not self._by_value:
            return
        first = next(iter(self._by_value.values())).first
        problem = first.problem
        if self.records > 1:
            counts = [f"{value} ({fault.count:,})" for value, fault in self._by_value.items()]
            more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
            problem += f"; {self.records:,} records have such labels: {', '.join(counts[:_SHOWN])}{more}"
        raise InputError(problem, file=first.file, field=first.field, value=first.value, wanted=first.wanted)


def _place(error: InputError) -> str:
    return f"{error.file}, {(error.field or '').removesuffix(', label')}"
