"""The data report's page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import pytest

from datasets_manifest.checks.data_check import check
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from trainers.reports.data_check_page import page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.stack
@pytest.mark.parametrize("width", [380, 1000])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    manifests = [load_manifest(path) for path in write_postcards(tmp_path, seed=1, train=12, val=3).values()]
    (tmp_path / "report.html").write_text(page(check(manifests), manifests), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "page.png"
    asked = [f"--window-size={width},900", f"--screenshot={shot}", (tmp_path / "report.html").as_uri()]
    subprocess.run([BROWSER, *options, *asked], check=True, capture_output=True, timeout=90)
    seen = cv2.imread(str(shot))
    assert seen is not None
    assert seen.shape[1] == width
    assert seen.reshape(-1, 3).std() > 10  # thumbnails and bars, not an empty page
    bars = (abs(seen.astype(int) - (178, 114, 0)).sum(2) < 20).sum()  # BGR of the bars' blue
    assert bars > 500
