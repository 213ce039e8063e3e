"""The results page says what the benchmarks' files say."""

from __future__ import annotations

from benchmarks.tables import PAGE, page


def test_results_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.tables writes it"
