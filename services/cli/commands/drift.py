"""`m2can models drift`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands.import_export import app
from services.cli.options import RUNS, AsJson, ModelArgument, Storage, TrackingUri, show


@app.command(epilog="Example:  m2can models drift m2can-mountain@champion --on sample.parquet --page drift.html")
def drift(
    model: ModelArgument,
    on: Annotated[str, typer.Option(help="A manifest, or a .parquet that `serve` or `predict` wrote with --sample.")],
    split: Annotated[str, typer.Option(help="Split of the manifest; `all`: of all splits.")] = "all",
    page: Annotated[Path | None, typer.Option(help="Write a page with charts to this HTML file.")] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Say whether data differ from those of training: predicted classes, confidence, texts, pictures, features.

    Labels are not read. Exit code 0, whether the data moved or not.
    """
    from datasets_manifest.files import require_file, write_atomically
    from services.drift.check import check_drift
    from services.drift.comparison import in_words
    from services.model_files import model_files

    if page is not None:
        require_file(page, "--page")
    checked = check_drift(model_files(model, tracking_uri, storage), on, split)
    if page is not None:
        from services.drift.page import drift_page

        write_atomically(page, drift_page(model, checked))
    found = checked.drift
    content = {
        "model": model,
        "on": checked.on,
        "notes": checked.notes,
        "moved": [one.what for one in found.moved],
        "expected_accuracy": None if checked.expected is None else asdict(checked.expected),
    }
    first, *more = in_words(found)
    lines = [first, *(f"  {line}" for line in more)]
    if checked.expected is not None:
        lines.append(f"expected accuracy now  {checked.expected}, an estimate without labels")
    lines += [f"note: {note}" for note in checked.notes]
    if page is not None:
        lines.append(f"page  {page}")
    show(json_, content | asdict(found), *lines)
