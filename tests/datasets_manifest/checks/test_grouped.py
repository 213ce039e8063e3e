"""Findings that say the same of several splits stand together, on the page and in the terminal."""

from __future__ import annotations

from datasets_manifest.checks.data_check import DataReport, Finding
from services.cli.commands.data import _report_lines
from trainers.reports.data_check_page import page


def test_findings_of_one_kind_stand_together() -> None:
    same = [
        Finding("note", "no-text", name, "train", 2, "records without a text", [f"{name}-1"]) for name in ("a", "b")
    ]
    report = DataReport([], [Finding("fatal", "missing", "a", "val", 3, "pictures are missing", ["x"]), *same])
    assert [[f.domain for f in group] for group in report.grouped()] == [["a"], ["a", "b"]]
    lines = list(_report_lines(report))
    assert "note     a/train 2, b/train 2: records without a text" in lines
    assert lines.count("             b-1") == 1
    html = page(report, [])
    assert html.count("records without a text") == 1
    assert html.index("a/train: 2") < html.index("<code>a-1</code>") < html.index("b/train: 2")
