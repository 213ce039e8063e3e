"""`m2can data`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import AsJson, DataRoot, show, use_data_root

if TYPE_CHECKING:
    import pyarrow as pa

    from datasets_manifest.checks.data_check import DataReport
    from trainers.recipe import Recipe

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.command(epilog="Example:  m2can data generate my-postcards")
def generate(
    out: Annotated[Path, typer.Argument(help="Folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other postcards.")] = 0,
    train: Annotated[int, typer.Option(help="Training records of each domain.", min=3)] = 600,
    val: Annotated[int, typer.Option(help="Validation records of each domain.", min=3)] = 200,
    json_: AsJson = False,
) -> None:
    """Write the generated data set: three domains of rendered postcards with captions."""
    from datasets_manifest.postcards.generate import write_postcards

    manifests = [str(path) for path in write_postcards(out, seed=seed, train=train, val=val).values()]
    show(json_, {"manifests": manifests}, *manifests)


@app.command(epilog="Example:  m2can data init reviews.csv")
def init(
    records: Annotated[Path, typer.Argument(help="A records file: CSV, TSV, JSON, JSON lines or Parquet.")],
    json_: AsJson = False,
) -> None:
    """Look at a file and write a manifest beside it, with guesses as comments. Nothing is overwritten."""
    from datasets_manifest.checks.manifest_guess import guess_manifest
    from datasets_manifest.errors import InputError
    from datasets_manifest.files import write_atomically
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.records.readers import read_split

    guess = guess_manifest(records)
    write_atomically(guess.manifest, guess.text)
    problem = None
    try:
        read_split(load_manifest(guess.manifest), "train")
    except InputError as error:
        problem = str(error)
    left = [f"to be mended by hand: {problem}"] if problem else [f"next: m2can data check {guess.manifest}"]
    show(json_, {"manifest": str(guess.manifest), "problem": problem}, guess.text, f"written: {guess.manifest}", *left)


@app.command("list", epilog="Example:  m2can data list --json")
def list_(json_: AsJson = False) -> None:
    """The data sets known by name."""
    from datasets_manifest.manifest.catalog import entries

    known = list(entries().values())
    lines = []
    for entry in known:
        counts = " / ".join(f"{count:,}" for count in entry.counts.values())
        lines.append(f"{entry.name:10} {counts:>15}  {', '.join(entry.classes):28} {entry.about}")
    show(json_, [entry.model_dump() for entry in known], *lines)


@app.command("show", epilog="Example:  m2can data show Yelp --data-root /data")
def show_(
    name: Annotated[str, typer.Argument(help="A data set of `m2can data list`.")],
    data_root: DataRoot = None,
    json_: AsJson = False,
) -> None:
    """What is known of a data set, and where its files belong."""
    from datasets_manifest.errors import InputError
    from datasets_manifest.manifest import catalog

    use_data_root(data_root)
    entry = catalog.find(name)
    try:
        root = f"{str(catalog.data_root()).rstrip('/')}/{entry.name}"
    except InputError:
        root = f"<data root>/{entry.name}"
    files = [f"{root}/{domain}/manifest.yaml" for domain in entry.domains]
    files = files or [*(f"{root}/{split}.json" for split in entry.counts), f"{root}/{entry.layout}"]
    rows = {
        "about": entry.about,
        "classes": ", ".join(entry.classes),
        "records": ", ".join(f"{count:,} {split}" for split, count in entry.counts.items()),
        "label rule": entry.label_rule,
        "source": entry.source,
        "terms": entry.terms,
        "files": ("\n" + " " * 14).join(files),
        "in a recipe": ", ".join(f"catalog:{entry.name}/{d}" for d in entry.domains) or f"catalog:{entry.name}",
    }
    show(json_, entry.model_dump() | {"files": files}, *(f"  {key:12}{value}" for key, value in rows.items()))


@app.command(epilog="Example:  m2can data check reviews/manifest.yaml shop/manifest.yaml --html report.html")
def check(
    manifests: Annotated[list[str], typer.Argument(help="The domains' manifests, or catalog:NAME.")],
    html: Annotated[Path | None, typer.Option(help="Write the report as a page with thumbnails, too.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster for many pictures; default: a local one.")] = None,
    data_root: DataRoot = None,
    json_: AsJson = False,
) -> None:
    """Check every record and picture. Exit code 1 if training would be harmed."""
    from datasets_manifest.checks import data_check as checking
    from datasets_manifest.checks.picture_facts import IN_PROCESS
    from datasets_manifest.files import write_atomically
    from datasets_manifest.manifest.loading import load_manifest
    from trainers.cluster.local_cluster import start_ray
    from trainers.reports.data_check_page import page

    use_data_root(data_root)
    loaded = [load_manifest(path) for path in manifests]

    def progress(count: int) -> None:
        if count > IN_PROCESS and sys.stderr.isatty():
            print(f"\r{count:,} pictures", end="", file=sys.stderr, flush=True)

    report = checking.check(loaded, start=lambda: start_ray(address), on_done=progress)
    if html is not None:
        write_atomically(html, page(report, loaded))
    show(json_, report.as_dict(), *_report_lines(report))
    if report.harmful:
        raise typer.Exit(1)


@app.command(epilog="Example:  m2can data pack reviews/manifest.yaml packed/reviews --shorter-side 288")
def pack(
    manifest: Annotated[str, typer.Argument(help="A manifest, or catalog:NAME.")],
    out: Annotated[
        str, typer.Argument(help="New folder, or s3://bucket/…; one whose packing was interrupted goes on.")
    ],
    shorter_side: Annotated[
        int | None,
        typer.Option(min=8, help="Reduce larger pictures to this shorter side (pixels); default: keep bytes."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of reduced pictures.")] = 90,
    data_root: DataRoot = None,
    json_: AsJson = False,
) -> None:
    """Put pictures one after another into few large files, from which training reads them by offset."""
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.packing.pack import Packing
    from datasets_manifest.packing.pack import pack as run
    from trainers.store import is_store
    from trainers.store.run_store import written_to

    use_data_root(data_root)
    with written_to(out, "manifest.yaml") as folder:
        packed = run(load_manifest(manifest), folder, Packing(shorter_side, quality))
    sizes = f"{packed.bytes_before / 1e6:,.1f} MB → {packed.bytes_after / 1e6:,.1f} MB"
    counts = f"{packed.records:,} records, {packed.pictures:,} pictures ({packed.bad:,} bad), {sizes}"
    made = f"{out.rstrip('/')}/{packed.manifest.name}" if is_store(out) else str(packed.manifest)
    show(json_, vars(packed) | {"manifest": made}, counts, made)


@app.command(epilog="Example:  m2can data unpack packed/reviews/manifest.yaml reviews-again")
def unpack(
    manifest: Annotated[str, typer.Argument(help="The manifest of a packed data set.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    json_: AsJson = False,
) -> None:
    """Write a packed data set as one file a picture again."""
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.packing.pack import unpack as run

    unpacked = str(run(load_manifest(manifest), out))
    show(json_, {"manifest": unpacked}, unpacked)


@app.command(epilog="Example:  m2can data suggest runs/my-run --n 50 --out to-label")
def suggest(
    model: Annotated[
        str,
        typer.Argument(metavar="RECIPE|RUN", help="The folder of a finished run, or a recipe, whose floor is found."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for suggested.csv and label.html.")] = Path("to-label"),
    n: Annotated[int, typer.Option("--n", min=2, help="How many records; every second one is drawn by chance.")] = 50,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the recipe; may be repeated.")
    ] = None,
    data_root: DataRoot = None,
    json_: AsJson = False,
) -> None:
    """Write the target's training records that are most worth a label, and a page to label them on in a browser."""
    from datasets_manifest.files import whole_folder
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.records.readers import read_split
    from services.labelling.page import labelling_page
    from services.labelling.suggest import suggest as chosen_of
    from services.labelling.suggest import table_of
    from trainers.model.inspection import Inspector

    use_data_root(data_root)
    _require_new(out)
    folder, recipe = _model_and_recipe(model, list(set_ or []))
    manifest = load_manifest(recipe.data.target)
    records = read_split(manifest, recipe.data.train_split).table
    labelled = _labelled(recipe, records, list(manifest.classes))
    predictor = Inspector.load(folder)
    suggestions = chosen_of(predictor, records, n, seed=recipe.train.seed, labelled=labelled)
    with whole_folder(out) as draft:
        (draft / "suggested.csv").write_text(table_of(suggestions), encoding="utf-8")
        page = labelling_page(suggestions, predictor.classes, predictor.card.target)
        (draft / "label.html").write_text(page, encoding="utf-8")
    content = {"csv": str(out / "suggested.csv"), "page": str(out / "label.html"), "model": str(folder)}
    by_chance = sum(one.purpose == "check" for one in suggestions)
    show(
        json_,
        content | {"suggestions": [vars(one) for one in suggestions]},
        f"{n - by_chance} records most worth a label, by {folder}, and {by_chance} drawn by chance, to measure the accuracy",
        f"label them in a browser: {out / 'label.html'}, or fill the column `label` of {out / 'suggested.csv'}",
        "then m2can train with train.target_labels=PATH of the file with the labels",
    )


def _require_new(folder: Path) -> None:
    from datasets_manifest.errors import InputError

    if folder.exists():
        raise InputError("is there already", field="--out", value=str(folder), wanted="a new folder")


def _model_and_recipe(given: str, overrides: list[str]) -> tuple[Path, Recipe]:
    """A run's chosen checkpoint, or the floor of a recipe, which is found first."""
    from datasets_manifest.errors import InputError
    from services.cli.commands.train import run_recipe
    from trainers.model.card import load_card, model_folder
    from trainers.recipe import load_recipe

    if not Path(given).is_dir():
        recipe = load_recipe(given, [*overrides, "tracking.enabled=false"])
        return run_recipe(recipe, floor_only=True).checkpoint, recipe
    if overrides:
        raise InputError("goes with a recipe, not with a run", field="--set", value=overrides)
    folder = model_folder(Path(given))
    return folder, load_card(folder).recipe


def _labelled(recipe: Recipe, records: pa.Table, classes: list[str]) -> list[str]:
    """Ids of the records whose labels the recipe trains with already."""
    from trainers.preflight.inputs import given_labels

    ids = records["id"].to_pylist()
    given = given_labels(recipe, ids, records["label"].to_numpy(), classes)
    if given is None:
        return []
    return [ids[row] for rows in (given.rows, given.check_rows) for row in rows]


def _report_lines(report: DataReport) -> Iterator[str]:
    for split in report.splits:
        labels = [f"{name} {count:,}" for name, count in split.labels.items() if count]
        labels += [f"unlabelled {split.unlabelled:,}"] if split.unlabelled else []
        sides = split.shorter_side
        size = f", shorter side {sides['min']:.0f} to {sides['max']:.0f}" if sides else ""
        words = f"{split.words['median']:.0f} words (median)" if split.words else "no text"
        yield f"{split.domain}/{split.split}: {split.records:,} records ({', '.join(labels)})"
        yield f"    {words}, {split.pictures:,} pictures{size}, {split.picture_bytes / 1e6:,.1f} MB"
    for same in report.grouped():
        where = ", ".join(f"{finding.place} {finding.count:,}" for finding in same)
        yield f"{same[0].severity:8} {where}: {same[0].message}"
        yield from (f"             {example}" for finding in same for example in finding.examples)
    yield "training would be harmed" if report.harmful else "nothing here would harm training"
