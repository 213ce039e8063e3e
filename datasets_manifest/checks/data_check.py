"""The data report: what is in data sets, and what of it would harm training. Nothing is changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from datasets_manifest.checks.picture_facts import IN_PROCESS, PictureFacts, read_all_facts
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.file_names import similar_file
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.records.class_sets import require_same_classes
from datasets_manifest.records.label_faults import LabelFaults
from datasets_manifest.records.readers import ReadResult, read_split

Severity = Literal["fatal", "warning", "note"]

TINY, HUGE = 32, 40_000_000  # pixels: of the shorter side, of the whole picture
MAX_BAD, MAX_LEAKED = 0.05, 0.01  # of a split's records; more is fatal
EXAMPLES = 5
LABELS = 100  # most distinct bad labels that are listed


@dataclass(frozen=True)
class Finding:
    """severity: `fatal` would harm training. kind: a stable name. examples: ids or paths, the first few of `count`."""

    severity: Severity
    kind: str
    domain: str
    split: str
    count: int
    message: str
    examples: list[str]

    @property
    def place(self) -> str:
        """`shop/train`."""
        return f"{self.domain}/{self.split}".rstrip("/")


@dataclass(frozen=True)
class SplitReport:
    """Counts and distributions of one split. Distributions are {min, median, p95, max}, {} where there is nothing."""

    domain: str
    split: str
    records: int
    labels: dict[str, int]
    unlabelled: int
    words: dict[str, float]  # of a record's texts together
    pictures: int
    pictures_a_record: dict[str, float]
    shorter_side: dict[str, float]  # of its pictures, in pixels
    picture_bytes: int


@dataclass(frozen=True)
class DataReport:
    """All splits and what was found in them, the gravest first. harmful: whether it would harm training."""

    splits: list[SplitReport]
    findings: list[Finding] = field(default_factory=list)

    def grouped(self) -> list[list[Finding]]:
        """The findings, those that say the same of several splits together."""
        groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.severity, finding.kind, finding.message].append(finding)
        return list(groups.values())

    @property
    def harmful(self) -> bool:
        return any(finding.severity == "fatal" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"harmful": self.harmful}


@dataclass(frozen=True)
class SplitRows:
    """One split as read: its rows, and the facts of all pictures by path."""

    manifest: LoadedManifest
    split: str
    read: ReadResult
    ids: list[str]
    texts: list[list[str]]
    images: list[list[str]]
    label: np.ndarray
    facts: dict[str, PictureFacts]

    @property
    def name(self) -> tuple[str, str]:
        """Domain and split."""
        return self.manifest.name, self.split

    def contents(self) -> list[tuple[object, ...]]:
        """Texts and picture digests of each record. Records with equal contents are copies."""
        return [
            (*(" ".join(text.split()) for text in texts), *(self.facts[path].digest or path for path in images))
            for texts, images in zip(self.texts, self.images, strict=True)
        ]

    def finding(self, severity: Severity, kind: str, message: str, found: Sequence[str]) -> Finding:
        return Finding(severity, kind, *self.name, len(found), message, list(found[:EXAMPLES]))


def check(
    manifests: Sequence[LoadedManifest],
    *,
    start: Callable[[], object] = lambda: None,
    on_done: Callable[[int], None] = lambda count: None,
) -> DataReport:
    """Read every record and picture of all splits of all manifests.

    Args:
        manifests: the domains that will be trained together, or one of them.
        start: called before more than IN_PROCESS pictures are read; starts Ray.
        on_done: called with the number of pictures read so far.
    """
    findings: list[Finding] = []
    try:
        require_same_classes(manifests)
    except InputError as error:
        differs = next(manifest for manifest in manifests if manifest.path == error.file)
        findings.append(Finding("fatal", "classes", differs.name, "", 1, str(error), []))
    read: list[tuple[LoadedManifest, str, ReadResult]] = []
    for manifest in manifests:
        for split in manifest.splits:
            bad_labels = LabelFaults()
            try:
                read.append((manifest, split, read_split(manifest, split, label_faults=bad_labels)))
            except InputError as error:
                findings.append(Finding("fatal", "records", manifest.name, split, 1, str(error), []))
            if bad_labels.records:
                message = f"records have a label that is no class; wanted {bad_labels.wanted}"
                where = (manifest.name, split)
                findings.append(
                    Finding("fatal", "bad-labels", *where, bad_labels.records, message, bad_labels.lines()[:LABELS])
                )
    paths = [path for _, _, result in read for images in result.table["images"].to_pylist() for path in images]
    if len(set(paths)) > IN_PROCESS:
        start()
    facts = read_all_facts(paths, on_done)
    rows = [_rows(manifest, split, result, facts) for manifest, split, result in read]
    for one in rows:
        findings += [*_of_records(one), *_of_pictures(one), *_of_labels(one), *_copies_within(one)]
    findings += _copies_between(rows)
    order = {"fatal": 0, "warning": 1, "note": 2}
    return DataReport([_summary(one) for one in rows], sorted(findings, key=lambda f: order[f.severity]))


def _rows(manifest: LoadedManifest, split: str, result: ReadResult, facts: dict[str, PictureFacts]) -> SplitRows:
    ids, texts, images = (result.table[name].to_pylist() for name in ("id", "texts", "images"))
    return SplitRows(manifest, split, result, ids, texts, images, result.table["label"].to_numpy(), facts)


def _summary(rows: SplitRows) -> SplitReport:
    facts = [rows.facts[path] for images in rows.images for path in images]
    sides = [min(f.width, f.height) for f in facts if f.problem is None]
    counts = Counter(rows.label[rows.label >= 0].tolist())
    return SplitReport(
        *rows.name,
        records=len(rows.ids),
        labels={name: counts[c] for c, name in enumerate(rows.manifest.classes)},
        unlabelled=int((rows.label < 0).sum()),
        words=_distribution([sum(len(text.split()) for text in texts) for texts in rows.texts]),
        pictures=len(facts),
        pictures_a_record=_distribution([len(images) for images in rows.images]),
        shorter_side=_distribution(sides),
        picture_bytes=sum(f.size for f in facts),
    )


def _distribution(values: Sequence[float]) -> dict[str, float]:
    if not len(values):
        return {}
    low, median, high, top = np.quantile(values, [0, 0.5, 0.95, 1])
    return {"min": float(low), "median": float(median), "p95": float(high), "max": float(top)}


def _of_records(rows: SplitRows) -> Iterator[Finding]:
    total, read = len(rows.ids), rows.read
    if read.without_content:
        message, examples = "records with neither text nor picture are left out", read.without_content_ids[:EXAMPLES]
        yield Finding("warning", "no-content", *rows.name, read.without_content, message, list(examples))
    if read.repeated_ids:
        yield Finding("warning", "repeated-ids", *rows.name, read.repeated_ids, "ids occur again; numbered", [])
    for name, close in read.absent.items():
        if close is not None:
            message = f"column is in no file: `{name}`; is `{close}` meant? `columns` in the manifest says so"
            yield Finding("fatal", "absent-column", *rows.name, 1, message, [])
        elif name != read.label_column:
            yield Finding("note", "absent-column", *rows.name, 1, f"column is in no file: `{name}`", [])
    for note in read.notes:
        yield Finding("note", "guess", *rows.name, 1, f"guess: {note}", [])
    for sentence in read.left_alone:
        yield Finding("warning", "left-alone", *rows.name, 1, sentence, [])
    for kind, column in (("no-text", rows.texts), ("no-picture", rows.images)):
        lacking = [identity for identity, content in zip(rows.ids, column, strict=True) if not content]
        if lacking:
            severity: Severity = "warning" if len(lacking) > total / 2 else "note"
            what = "text" if kind == "no-text" else "picture"
            yield rows.finding(severity, kind, f"records without a {what}: it counts as missing", lacking)


def _of_pictures(rows: SplitRows) -> Iterator[Finding]:
    found: dict[str, list[str]] = defaultdict(list)
    records_of: dict[str, list[str]] = defaultdict(list)
    harmed = 0
    for identity, images in zip(rows.ids, rows.images, strict=True):
        harmed += any(rows.facts[path].problem for path in images)
        for path in images:
            facts = rows.facts[path]
            if facts.problem is not None:
                found[facts.problem].append(path)
                records_of[path].append(identity)
            elif min(facts.width, facts.height) < TINY:
                found["tiny"].append(path)
            elif facts.width * facts.height > HUGE:
                found["huge"].append(path)
    fatal = harmed > MAX_BAD * len(rows.ids)
    for problem, paths in found.items():
        if problem == "tiny":
            yield rows.finding("warning", "tiny", f"pictures with a side under {TINY} pixels", paths)
        elif problem == "huge":
            yield rows.finding("note", "huge", f"pictures of more than {HUGE // 10**6} million pixels: slow", paths)
        else:
            why = f"pictures are {problem}".replace("pictures are not an image", "files are not images")
            more = f"; {harmed} of {len(rows.ids)} records have one, more than {MAX_BAD:.0%}" if fatal else ""
            kind = problem.partition(" (")[0].replace(" ", "-")
            finding = rows.finding("fatal" if fatal else "warning", kind, f"{why} and will be skipped{more}", paths)
            different = list(dict.fromkeys(paths))[:EXAMPLES]
            yield replace(
                finding, examples=[_described(path, records_of[path], problem == "missing") for path in different]
            )


def _described(path: str, records: list[str], missing: bool) -> str:
    """A picture that cannot be read, with the records that have it, and where it is missing a file of a similar name."""
    similar = similar_file(path) if missing else None
    among = f"record {records[0]}" if len(records) == 1 else f"{len(records)} records, the first {records[0]}"
    return f"{path} ({among})" if similar is None else f"{path} ({among}; {similar})"


def _of_labels(rows: SplitRows) -> Iterator[Finding]:
    known = rows.label[rows.label >= 0]
    if not len(known):
        found = rows.finding("note", "unlabelled", "no record has a label: this can only be a target", rows.ids)
        yield replace(found, examples=[])  # all of them
        return
    absent = [name for c, name in enumerate(rows.manifest.classes) if not (known == c).any()]
    if len(absent) >= len(rows.manifest.classes) - 1:
        yield rows.finding("fatal", "one-class", "all labels are of one class; these have no record", absent)
    elif absent:
        yield rows.finding("warning", "absent-classes", "classes without a record", absent)
    shares = np.bincount(known, minlength=len(rows.manifest.classes)) / len(known)
    if not absent and shares.max() > 10 * shares.min():
        rare = rows.manifest.classes[int(shares.argmin())]
        yield rows.finding("note", "imbalance", f"the rarest class has {shares.min():.1%} of the labels", [rare])


def _copies_within(rows: SplitRows) -> Iterator[Finding]:
    rows_of: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, content in enumerate(rows.contents()):
        rows_of[content].append(row)
    copies = [group for group in rows_of.values() if len(group) > 1]
    again = [rows.ids[row] for group in copies for row in group[1:]]
    if again:
        yield rows.finding("warning", "copies", "records are copies of others of the split", again)
    conflicting = [
        group for group in copies if len({int(rows.label[row]) for row in group if rows.label[row] >= 0}) > 1
    ]
    if conflicting:
        ids = [" = ".join(rows.ids[row] for row in group) for group in conflicting]
        yield rows.finding("warning", "copies-disagree", "copies have different labels", ids)


def _copies_between(splits: Iterable[SplitRows]) -> Iterator[Finding]:
    """Records, single pictures and ids that a later split shares with an earlier one."""
    records: dict[tuple[object, ...], tuple[SplitRows, int]] = {}
    pictures: dict[bytes, SplitRows] = {}
    ids: dict[tuple[str, str], tuple[SplitRows, tuple[object, ...]]] = {}
    for rows in splits:
        contents = rows.contents()
        shared: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for row, content in enumerate(contents):
            if content in records:
                shared["records", *records[content][0].name].append(rows.ids[row])
            else:
                for path in rows.images[row]:
                    digest = rows.facts[path].digest
                    if digest in pictures:
                        shared["pictures", *pictures[digest].name].append(path)
            identity = (rows.manifest.name, rows.ids[row])
            if identity in ids and ids[identity][1] != content:
                shared["ids", *ids[identity][0].name].append(rows.ids[row])
        for (what, domain, split), found in shared.items():
            fatal = what == "records" and len(found) > MAX_LEAKED * len(rows.ids)
            severity: Severity = "fatal" if fatal else "note" if what == "ids" else "warning"
            message = f"{what} are also in {domain}/{split}"
            if fatal:
                message += f", more than {MAX_LEAKED:.0%}: what is measured here was seen there"
            yield rows.finding(severity, f"shared-{what}", message, found)
        for row, content in enumerate(contents):
            records.setdefault(content, (rows, row))
            ids.setdefault((rows.manifest.name, rows.ids[row]), (rows, content))
            for path in rows.images[row]:
                digest = rows.facts[path].digest
                if digest is not None:
                    pictures.setdefault(digest, rows)
