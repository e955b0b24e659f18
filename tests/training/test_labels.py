"""The file of labels: what is valid, and what must not be accepted silently. Without TensorFlow."""

from pathlib import Path

import pytest

from training.errors import BadInput
from training.labels import begin_with_numbers, read_labels


def labels_in(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "labels.txt").write_text(text)
    return read_labels(folder / "labels.txt")


@pytest.mark.parametrize(
    "text",
    [
        "0,red\n1,green\n2,blue\n",
        "1;red\n2;green\n3;blue\n",
        "0\tred\n1\tgreen\n",
        "2, blue\n0, red\n1, green\n",
        "index,label\n0,red\n1,green\n",
        "red,0\ngreen,1\n",
        "0,0\n1,1\n2,2\n",
    ],
)
def test_a_table_of_index_and_label_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"numbers its labels, as in .*: leave the numbers out, and keep"):
        labels_in(tmp_path, text)


@pytest.mark.parametrize(
    "labels",
    [
        ("red, dark", "red, light"),
        ("0,5 mm", "1,0 mm", "1,5 mm"),
        ("0,5 mm", "1,5 mm"),
        ("1,000 items", "2,000 items"),
        ("3,red", "7,green"),
        ("type, 1", "type, 2"),
        ("0", "1", "2"),
        ("0,red", "green"),
    ],
)
def test_labels_with_numbers_and_commas_of_their_own_are_labels(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    assert labels_in(tmp_path, "\n".join(labels)) == labels
    assert not begin_with_numbers(labels)


def test_numbers_that_may_be_part_of_the_labels_are_noticed() -> None:
    assert begin_with_numbers(("0 red", "1 green"))
    assert begin_with_numbers(("1. red", "2. green"))
    assert not begin_with_numbers(("2 cats", "2 dogs"))
