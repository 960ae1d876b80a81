"""Every example on the page of metrics runs and prints what it says, and every public name is on it."""

import doctest
from pathlib import Path

from voxplain import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_examples_of_the_page_print_what_it_says():
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 40 and found.failed == 0


def test_an_example_that_prints_something_else_is_found(tmp_path):
    wrong = tmp_path / "page.md"
    wrong.write_text(PAGE.read_text().replace("0.75\n", "0.76\n", 1))
    found = doctest.testfile(str(wrong), module_relative=False, verbose=False, report=False)
    assert found.failed == 1


def test_every_metric_is_on_the_page():
    page = PAGE.read_text()
    assert [name for name in metrics.__all__ if f"`{name}" not in page] == []
