"""Labels of some of the target's records: from a CSV of any program, or those of its manifest; a part is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.records.target_labels import TargetLabels, own_target_labels, read_target_labels

IDS = [f"r{n}" for n in range(12)]
CLASSES = ["bad", "good"]


def read(folder: Path, text: str) -> TargetLabels:
    file = folder / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return read_target_labels(file, IDS, 100, CLASSES)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_stated_purpose_decides_and_empty_labels_are_left_out(tmp_path: Path, separator: str) -> None:
    rows = ["id,texts,label,purpose", "r7,one,good,check", "r2,two,bad,train", "r3,three,,train", "r1,four,good,"]
    found = read(tmp_path, "\ufeff" + "\r\n".join(rows).replace(",", separator) + "\r\n")
    assert (found.rows.tolist(), found.labels.tolist()) == ([101, 102], [1, 0])
    assert (found.check_rows.tolist(), found.check_labels.tolist()) == ([107], [1])


def test_without_a_purpose_half_of_each_class_is_held_out_whatever_the_order(tmp_path: Path) -> None:
    rows = [f"{name},{CLASSES[n % 2]}" for n, name in enumerate(IDS[:10])]
    found = read(tmp_path, "\n".join(["id,label", *rows]))
    other = read(tmp_path, "\n".join(["id,label", *reversed(rows)]))
    assert np.bincount(found.labels).tolist() == [3, 3] and np.bincount(found.check_labels).tolist() == [2, 2]
    assert sorted([*found.rows, *found.check_rows]) == list(range(100, 110))
    assert (found.rows == other.rows).all() and (found.check_rows == other.check_rows).all()


def test_those_of_the_manifest(tmp_path: Path) -> None:
    found = own_target_labels(np.array([-1, 1, 1, -1, 0]), IDS[:5], 50)
    assert sorted([*found.rows, *found.check_rows]) == [51, 52, 54]
    assert len(found.check_rows) == 1 and found.check_labels.tolist() == [1]
    with pytest.raises(InputError, match="no training record of the target has a label; found 'few'; wanted labels"):
        own_target_labels(np.full(3, -1), IDS[:3], 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\nr1,good\n", r"line 1: is no table of labels; found \['name', 'label'\]; wanted a table with the"),
        (
            "id,label\nr1,god\n",
            r"line 2, label: no such class; found 'god'; wanted one of 'bad', 'good' \(nearest: 'good'",
        ),
        ("id,label\nr1,good\nrr2,bad\n", r"line 3, id: no such record; found 'rr2'; wanted the id .*\(nearest: r2\)"),
        (
            "id,label\nr1,good\nr1,bad\n",
            "line 3, label: another label than before, good; found 'bad'; wanted one label",
        ),
        (
            "id,label,purpose\nr1,good,test\n",
            "line 2, purpose: no such purpose; found 'test'; wanted `train` or `check`",
        ),
        ("id,label\nr1,\n", r"labels\.csv: holds no label; wanted a class in the column `label`"),
        ("", "is no table of labels"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, text)
