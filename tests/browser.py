"""Pages in headless Chromium, at a width that a window cannot have: in a frame of that width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FRAME = """<!doctype html><body style="margin:0"><pre id="told"></pre>
<iframe id="page" src="%s" style="width:%dpx;height:800px;border:0"></iframe>
<script>addEventListener('load', () => {
  const frame = document.getElementById('page'), page = frame.contentDocument, view = frame.contentWindow;
  let told;
  try { told = (%s)(page, view); } catch (error) { told = {error: String(error)}; }
  told.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  told.loaded = view.performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).map(e => e.name);
  document.getElementById('told').textContent = JSON.stringify(told);
});</script>"""


def ask(page: Path, width: int, script: str, folder: Path) -> dict[str, Any]:
    """What `script`, a JavaScript function of document and window, says of the page at this width in pixels.

    `overflow` is added: by how many pixels the page is wider than its window; and `loaded`: what it fetched.
    """
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    frame = folder / f"frame-{width}.html"
    frame.write_text(_FRAME % (page.as_uri(), width, script), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900"]
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=4000", "--dump-dom", frame.as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=90,
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], done.stderr[-2000:]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    assert "error" not in told, told
    return told
