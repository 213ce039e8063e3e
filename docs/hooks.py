"""Pages and parts of pages that are made when the documents are built.

api.md comes from the docstrings, notebook.md from notebook.ipynb, and a line `$$ … $$` is set by matplotlib: the pages load
nothing from elsewhere.
"""

from __future__ import annotations

import io
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_CELL, _CODE = re.compile(r"<td.*?</td>", re.S), re.compile(r"<code>[^<]*</code>")
_ELSEWHERE = 'src="https://unpkg.com/iframe-worker/shim"'
_FORMULA = re.compile(r"^\$\$ (.+) \$\$$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """The generated pages."""
    sys.path.insert(0, str(ROOT))  # here: MkDocs takes back what a hook's file does to the path
    from docs.reference import api_page, notebook_page

    for name, make in {"api": api_page, "notebook": notebook_page}.items():
        files.append(File.generated(config, f"{name}.md", content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return _FORMULA.sub(lambda found: formula(found.group(1)), markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Names in tables may break behind a dot or an underscore, and nowhere else."""
    return _CELL.sub(
        lambda cell: _CODE.sub(lambda code: re.sub(r"([._])(?=\w)", r"\1<wbr>", code.group()), cell.group()), html
    )


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The plugin `offline` would load a script from elsewhere."""
    return output.replace(_ELSEWHERE, f'src="{"../" * page.url.count("/")}pictures/search.js"')


def on_post_template(output: str, template_name: str, config: Any) -> str:
    return output.replace(_ELSEWHERE, 'src="pictures/search.js"')


def formula(source: str) -> str:
    """TeX (as far as matplotlib's mathtext knows it) → SVG in the text's colour, with the source for screen readers."""
    figure = Figure(figsize=(0.01, 0.01))
    figure.text(0, 0, f"${source}$", fontsize=12)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight", pad_inches=0.04, transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = re.sub(r"<rdf:RDF.*?</rdf:RDF>|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    # Several formulas share a page: their glyphs' ids must differ.
    prefix = f"f{abs(hash(source)):x}"
    svg = re.sub(r'(id="|href="#|url\(#)', lambda match: match.group() + prefix, svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(source)}" fill="currentColor" ', 1)
    return f'<span class="formula">{" ".join(svg.split())}</span>'
