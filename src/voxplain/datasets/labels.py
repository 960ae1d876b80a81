"""The 14 labels of chest X-ray sets, and what becomes of an uncertain one (-1): the user has to say."""

from collections.abc import Iterable, Mapping
from typing import Any

from voxplain.datasets.base import Excluded
from voxplain.datasets.tables import number

CHEXPERT = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
UNCERTAIN = {
    "positive": "present",
    "negative": "absent",
    "unknown": "not known, as if not mentioned",
    "exclude": "the whole study is left out",
}
"""What -1 can become."""


def settle(raw: Mapping[str, float], uncertain: str) -> dict[str, bool]:
    """What is known to be present (True) or absent (False), of the labels that are mentioned.

    Raises `Excluded` by the policy "exclude", and ValueError for any value but 1, 0 and -1.
    """
    check_policy(uncertain)
    found = {}
    for name, value in checked(raw).items():
        if value == -1 and uncertain == "exclude":
            raise Excluded("a label is uncertain")
        if value == -1 and uncertain == "unknown":
            continue
        found[name] = value == 1 or (value == -1 and uncertain == "positive")
    return found


def check_policy(uncertain: str) -> None:
    """Raises ValueError for a policy that does not exist."""
    if uncertain not in UNCERTAIN:
        known = ", ".join(f"{name} ({what})" for name, what in UNCERTAIN.items())
        raise ValueError(f"uncertain={uncertain!r}: say what -1 becomes: {known}")


def from_row(row: Mapping[str, str], names: Iterable[str], place: str) -> dict[str, float]:
    """The labels of a CSV row that are mentioned: those whose field is not empty. Raises ValueError as `checked`."""
    return checked({name: number(row[name], f"{place}, {name}") for name in names if row[name]}, place)


def checked(raw: Mapping[str, Any], place: str = "") -> dict[str, float]:
    """The labels, where each is the number 1, 0 or -1. Raises ValueError that says where another stood."""
    for name, value in raw.items():
        if value not in (1, 0, -1):
            where = f"{place}: " if place else ""
            raise ValueError(f"{where}label {name!r} is {value!r}; expected the number 1, 0 or -1, or nothing")
    return dict(raw)


def as_text(labels: Mapping[str, bool]) -> str:
    """The names of what is present, in alphabetical order, as a text to generate from. Raises `Excluded` for none."""
    present = sorted(name for name, value in labels.items() if value)
    if not present:
        raise Excluded("no label is positive")
    return ", ".join(present)
