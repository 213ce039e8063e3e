"""The keys of a manifest, as pydantic models. docs/manifest.md shows their descriptions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from datasets_manifest.errors import composed
from datasets_manifest.manifest.image_template import check_template

RecordFormat = Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "folders"]

NOT_OF_FOLDERS = ("image_root", "image_template", "columns")  # keys that mean nothing with `format: folders`
DIVIDED_OFF = "val"  # name of the split that `split` makes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NonEmpty = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # Strict: YAML has types of its own, and `sample: "12"` or `classes: [yes, no]` (two booleans) is a slip to report.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Columns(_Section):
    """Which column (or JSON key) of a record holds what. A column named here must exist in every records file."""

    id: NonEmpty | None = Field(None, description="Column of the record's id; left out: `id` if there is one.")
    text: NonEmpty = Field("text", description="Column of the text, or of a list of texts.")
    image: NonEmpty = Field("image", description="Column of the pictures' paths.")
    label: NonEmpty = Field("label", description="Column of the class; an empty value is unlabelled.")


class Reading(_Section):
    """How records files are read. Relative paths are relative to the manifest's folder."""

    format: RecordFormat = Field("auto", description="Format of the files; `auto`: by the ending of their names.")
    columns: Columns = Field(Columns(), description="Which column holds what.")
    encoding: NonEmpty | None = Field(
        None,
        description="Of text files, e.g. `cp1252`; left out: UTF-8, and of CSV and TSV what a byte order mark says, "
        "else UTF-8, else cp1252.",
    )
    separator: str | None = Field(
        None,
        description="Between the cells of a CSV, one character; left out: that of `,`, `;`, tab and `|` with which the header "
        "has the columns.",
    )
    image_separator: NonEmpty | None = Field(
        None,
        description="Between several paths in one value; left out: `|` in CSV and TSV, none elsewhere. "
        "A JSON list in a cell needs none.",
    )
    image_root: NonEmpty | None = Field(
        None, description="Folder or URI below which the pictures lie; left out: the manifest's folder."
    )
    image_template: NonEmpty | None = Field(
        None, description="Makes a path of what a record names, e.g. `photos/{first2}/{stem}.jpg`."
    )
    allow_absolute: bool = Field(False, description="Records may name absolute paths and URIs.")
    allow_outside_root: bool = Field(False, description="Records may leave the image root by `..` and symbolic links.")

    @field_validator("image_template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        return template if template is None else check_template(template)

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str | None) -> str | None:
        try:
            "".encode(name or "utf-8")
        except (LookupError, UnicodeError):
            raise ValueError("no such encoding; wanted utf-8, cp1252, utf-16 or another that Python knows") from None
        return name

    @field_validator("separator")
    @classmethod
    def _check_separator(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator in '"\r\n\0 '):
            raise ValueError('not a separator; wanted one character, a tab as "\\t" in double quotes')
        return separator


class Split(Reading):
    """One split: its records files and how to read them.

    Files and folders may be local or `s3://`, `gs://` and `hf://` URIs. With `format: folders`, `records` is a folder with
    a subfolder of pictures for each class; pictures beside these subfolders are unlabelled.
    """

    records: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] = Field(
        description="The file, or a list of files; with `format: folders` a folder."
    )

    @property
    def record_files(self) -> tuple[str, ...]:
        """The records files as written, always as a tuple."""
        return (self.records,) if isinstance(self.records, str) else tuple(self.records)


class Division(_Section):
    """How the only split is divided. The same file and seed give the same parts; equal records stay together."""

    val: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Fraction of the records that becomes the split `val`."
    )
    seed: int = Field(0, ge=0, description="Another seed gives other parts.")
    stratify: bool = Field(True, description="Both parts have the classes in the same proportions.")


class Manifest(_Section):
    """A data set of one domain."""

    schema_version: Literal[1] = Field(1, description="Version of this form.")
    name: Name = Field(description="The domain's name: letters, digits, `_` and `-`.")
    classes: Annotated[list[NonEmpty], Field(min_length=2)] = Field(
        description="Names of the classes, the same in all domains of a run, in any order."
    )
    labels: dict[str | int, NonEmpty | None] = Field(
        {},
        description="What stands in the records → class, e.g. `{Nature: nature, 5: positive}`; null: unlabelled. "
        "Class names need no entry.",
    )
    defaults: Reading = Field(Reading(), description="Keys for all splits at once; a split's own keys win.")
    splits: Annotated[dict[Name, Split], Field(min_length=1)] = Field(
        description="Name → split. Training reads `train` and, if there is one, `val`."
    )
    split: Division | None = Field(None, description="Divides the only split into itself and `val`.")

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str]) -> list[str]:
        for name in classes:
            if name != name.strip():
                raise ValueError(f"the class name {name!r} begins or ends with white space")
        normal = [composed(name) for name in classes]
        repeated = sorted({name for name in normal if normal.count(name) > 1})
        if repeated:
            raise ValueError(f"the class {repeated[0]!r} is named twice")
        return classes

    def complete_splits(self) -> dict[str, Split]:
        """The splits with the defaults in them, and the one that `split` divides off."""
        splits = {name: _with_defaults(split, self.defaults) for name, split in self.splits.items()}
        if self.split is not None:
            (whole,) = splits.values()
            splits[DIVIDED_OFF] = whole
        return splits


def _with_defaults(split: Split, defaults: Reading) -> Split:
    update = {name: getattr(defaults, name) for name in defaults.model_fields_set - split.model_fields_set}
    if update.get("format", split.format) == "folders":
        return split.model_copy(update={name: value for name, value in update.items() if name not in NOT_OF_FOLDERS})
    if "columns" in defaults.model_fields_set & split.model_fields_set:
        own = split.columns
        absent = defaults.columns.model_fields_set - own.model_fields_set
        update["columns"] = own.model_copy(update={name: getattr(defaults.columns, name) for name in absent})
    return split.model_copy(update=update)
