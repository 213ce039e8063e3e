"""docs/pictures/architecture.svg:  python docs/pictures/make_architecture.py"""

from __future__ import annotations

from pathlib import Path

COLOURS = {"data": "#e3f2fd", "method": "#fff3e0", "train": "#e8f5e9", "service": "#f3e5f5", "store": "#eceff1"}
BOXES = [  # name, lines, x, y, width, height, colour
    ("manifests", ["manifests, records,", "pictures"], 20, 40, 170, 60, "store"),
    ("table", ["Arrow table", "one copy a node"], 20, 150, 170, 60, "data"),
    ("plan", ["EpochPlan", "rows of step k"], 20, 260, 170, 60, "data"),
    ("stream", ["Ray Data", "decode, views, tokens"], 250, 205, 180, 60, "data"),
    ("step", ["worker loop, SAM step", "DDP over workers"], 490, 205, 180, 60, "train"),
    ("method", ["trainers/m2can", "network, terms, UACR"], 490, 330, 180, 60, "method"),
    ("driver", ["driver: Ray Train", "recipe, resume, choice"], 490, 80, 180, 60, "train"),
    ("runs", ["run folder", "checkpoints, journal"], 730, 205, 170, 60, "store"),
    ("mlflow", ["MLflow", "runs, registry"], 730, 80, 170, 60, "store"),
    ("cli", ["m2can, jobs, API"], 250, 80, 180, 60, "service"),
    ("serve", ["Ray Serve", "batch inference"], 730, 330, 170, 60, "service"),
]
ARROWS = [  # from, to, label, way
    ("manifests", "table", "", "down"), ("table", "plan", "", "down"), ("table", "stream", "", "right"),
    ("plan", "stream", "", "right"), ("stream", "step", "batches", "right"), ("method", "step", "", "up"),
    ("driver", "step", "", "down"), ("cli", "driver", "", "right"), ("step", "runs", "", "right"),
    ("runs", "mlflow", "sender", "up"), ("runs", "serve", "model", "down"), ("step", "plan", "pseudo labels", "back"),
]  # fmt: skip


def draw() -> str:
    place = {name: (x, y, w, h) for name, _, x, y, w, h, _ in BOXES}
    parts = []
    for start, end, label, way in ARROWS:
        (ax, ay, aw, ah), (bx, by, bw, bh) = place[start], place[end]
        points: list[tuple[float, float]]
        if way == "right":
            points = [(ax + aw, ay + ah / 2), (bx, by + bh / 2)]
        elif way in ("down", "up"):
            down = way == "down"
            points = [(ax + aw / 2, ay + ah if down else ay), (bx + bw / 2, by if down else by + bh)]
        else:
            points = [(ax + 40, ay + ah), (ax + 40, 300), (bx + bw, 300)]
        line = " ".join(f"{x:g},{y:g}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="#455a64" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        if label:
            x, y = (points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2
            x, y = (points[-1][0] + 130, 292) if way == "back" else (x + (0 if way == "right" else 8), y - 6)
            anchor = "middle" if way in ("right", "back") else "start"
            parts.append(
                f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="13" fill="#37474f">{label}</text>'
            )
    for _, lines, x, y, w, h, colour in BOXES:
        parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{COLOURS[colour]}" stroke="#455a64"/>'
        )
        top = y + h / 2 - 9 * (len(lines) - 1) + 5
        for number, text in enumerate(lines):
            weight = "600" if number == 0 else "400"
            parts.append(
                f'<text x="{x + w / 2:g}" y="{top + 18 * number:g}" text-anchor="middle" font-size="14" '
                f'font-weight="{weight}" fill="#1c2a30">{text}</text>'
            )
    title = "Rooms and the way of the data"
    tip = '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 420" role="img" aria-label="{title}" '
        'font-family="Helvetica, Arial, sans-serif">'
        f'<title>{title}</title><defs>{tip}<path d="M0 0 10 5 0 10z" fill="#455a64"/></marker></defs>'
        f'<rect width="920" height="420" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw())
