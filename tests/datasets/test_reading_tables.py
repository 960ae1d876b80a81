"""What is wrong with a CSV or JSON file is said with its name and line, and no file is read as something else."""

import gzip
import json

import pytest

from voxplain.datasets.tables import distinct, entries, from_json, on_disk, read_document, rows

GOOD = "id,text\n1,one\n2,two\n"


def written(folder, content, name="table.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def test_a_table_is_read_with_the_places_of_its_rows(tmp_path):
    expected = [("table.csv, line 2", {"id": "1", "text": "one"}), ("table.csv, line 3", {"id": "2", "text": "two"})]
    assert list(rows(written(tmp_path, GOOD))) == expected
    zipped = written(tmp_path, gzip.compress(GOOD.encode()), "t.csv.gz")
    assert [row for _, row in rows(zipped)] == [row for _, row in expected]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("id,text\n1\n", "line 2 has fewer fields than the header; leave a field empty"),
        ("id,text\n1,a,b\n", "line 2 has more fields than the header"),
        ("id,text,id\n1,a,2\n", "line 1 names id more than once"),
        ('id,text\n1,"one\n2,two\n', r"table\.csv cannot be read after line 0: .*is a quote open"),
        ('id,text\n1,one\n2,"two" and\n', r"table\.csv cannot be read after line 2: .*is a quote open"),
        ("id,text\n1,é\n".encode("latin-1"), r"table\.csv is not in UTF-8, after line 0: .*save it as UTF-8"),
        ("id,text\n1,a\n".encode("utf-16"), r"table\.csv is not in UTF-8, after line 0"),
    ],
)
def test_a_malformed_table_is_refused_with_file_and_line(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(rows(written(tmp_path, content), ("id", "text")))


def test_columns_without_a_name_may_be_several(tmp_path):
    assert [row["id"] for _, row in rows(written(tmp_path, "id,,\n1,,\n"))] == ["1"]


@pytest.mark.parametrize(
    "content", [gzip.compress(b"id,text\n" + b"1,a\n" * 5000)[:-12], b"id,text\n1,a\n", b"\x1f\x8b\x08rest"]
)
def test_a_damaged_archive_is_refused_by_name(tmp_path, content):
    with pytest.raises(ValueError, match=r"t\.csv\.gz cannot be read after line \d+: .*damaged"):
        list(rows(written(tmp_path, content, "t.csv.gz")))


def test_two_rows_of_one_key_are_refused_with_both_places(tmp_path):
    path = written(tmp_path, "id,text\n1,a\n2,b\n1,c\n")
    with pytest.raises(ValueError, match=r"table\.csv, line 4 has the id of table\.csv, line 2"):
        list(distinct(rows(path), "id"))
    assert len(list(distinct(rows(path), "text"))) == 3


@pytest.mark.parametrize("text", ["{", b"\xff", "[" * 100_000])
def test_what_is_no_json_is_refused_with_its_place(text):
    with pytest.raises(ValueError, match="a.json, line 7 is no JSON that can be read"):
        from_json(text, "a.json, line 7")


@pytest.mark.parametrize("document", [[], {"images": {}}, 3])
def test_a_document_without_its_lists_is_refused(tmp_path, document):
    path = written(tmp_path, json.dumps(document), "a.json")
    with pytest.raises(ValueError, match=r"a\.json has no images; expected an object with the lists images"):
        read_document(path, ("images",))


@pytest.mark.parametrize("entry", [3, {}, {"id": None}, {"id": [1]}])
def test_an_entry_without_its_fields_is_refused_with_its_place(tmp_path, entry):
    with pytest.raises(ValueError, match=r"a\.json, images 2 has no id that is int or str"):
        list(entries(tmp_path / "a.json", "images", [{"id": 1}, entry], {"id": (int, str)}))


def test_a_text_that_is_too_long_for_a_file_is_none(tmp_path):
    written(tmp_path, GOOD)
    assert on_disk([tmp_path], "table.csv") == tmp_path / "table.csv"
    assert on_disk([tmp_path], "x" * 5000) is None
