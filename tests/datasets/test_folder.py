"""A plain CSV file in, records out; any set as a CSV file, and back."""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from voxplain.datasets.base import Boxes, Dataset, MaskFile, Outlines, Polygon, Record, Runs
from voxplain.datasets.folder import build_folder, place_of, write_table
from voxplain.datasets.opening import build
from voxplain.datasets.reading import read


@pytest.fixture
def films(tmp_path):
    for name in ("a", "b", "mask"):
        Image.fromarray(np.eye(8, dtype=np.uint8) * 3).save(tmp_path / f"{name}.png")
    return tmp_path


def table(folder, text):
    (folder / "metadata.csv").write_text(text)
    return build_folder(folder)


def test_the_plain_columns_are_read(films):
    found = table(
        films,
        "image,boxes,mask,mask_values,prompt,words,split,patient,ward\n"
        'a.png,0 0 2 2; 4 4.5 1 1,,,"left effusion, large",effusion; left,test,p1,3A\n'
        "b.png,,mask.png,3,nodule,,dev,p2,\n",
    )
    first, second = found
    assert first.truth == Boxes(((0, 0, 2, 2), (4, 4.5, 1, 1)))
    assert (first.prompt, first.words, first.facts) == ("left effusion, large", ("effusion", "left"), {"ward": "3A"})
    assert second.truth == MaskFile(films / "mask.png", (3,)) and second.words == ()
    assert [record.split for record in found] == ["test", "dev"] and [record.patient for record in found] == [
        "p1",
        "p2",
    ]
    assert read(second).truth.values.sum() == 8
    assert len(found.where(split="dev")) == 1 and found.where(split="dev").left_out == {"another split": 1}
    with pytest.raises(ValueError, match="no split 'train'; it has 'dev', 'test'"):
        found.where(split="train")


def test_rows_are_left_out_with_a_reason_and_a_wrong_folder_is_an_error(films):
    found = table(films, "image,mask,prompt\na.png,,x\ngone.png,,x\nb.png,gone.png,x\n,,\n,,text only\n")
    assert [record.image for record in found] == [films / "a.png", None]
    assert found.left_out == {
        "neither image nor text": 1,
        "the image is not on the disk": 1,
        "the mask is not on the disk": 1,
    }
    assert "2 records, 1 images, 0 patients; left out: neither image nor text 1;" in found.summary()
    with pytest.raises(FileNotFoundError, match="none of 1 images"):
        table(films, "image\ngone.png\n")
    with pytest.raises(FileNotFoundError, match=r"other\.csv is not there"):
        build_folder(films, "other.csv")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image,boxes\na.png,1 2 3\n", "line 2: box .*expected 4 numbers"),
        ("image,boxes\na.png,1 2 3 x\n", "line 2: boxes: 'x' is no number"),
        ("image,boxes,mask\na.png,1 2 3 4,mask.png\n", "line 2: mask and boxes; a row has one truth"),
        ("image,index\na.png,1.5\n", "line 2, index: '1.5' is no whole number"),
        ("image,prompt\na.png,one,two\n", "line 2 has more fields than the header"),
        ("id,image\na,a.png\na,b.png\n", "1 ids occur more than once, such as 'a'"),
        ("image,labels\na.png,{\n", "line 2, labels is no JSON"),
        ("image,labels\na.png,[1]\n", "line 2, labels: expected a JSON object"),
        ('image,labels\na.png,"{""Edema"": -1}"\n', "line 2, labels: expected true or false for each"),
        ("image,facts\na.png,[1]\n", "line 2, facts: expected a JSON object"),
        ("image,outlines\na.png,[1]\n", "line 2: outlines are not as in docs"),
        ('image,outlines\na.png,"{""points"": [0, 0, 1, 1, 1, 0]}"\n', "line 2: outlines are not as in docs"),
        ('image,outlines\na.png,"[{""counts"": [1]}]"\n', "line 2: outlines are not as in docs"),
        ('image,outlines\na.png,"[{""points"": [0, 1, 2, 3]}]"\n', "line 2: a polygon needs three or more points"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(films, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        table(films, text)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_damaged_file_beside_the_table_is_named(films, text):
    (films / "metadata.dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"metadata\.dataset\.json"):
        table(films, "image\na.png\n")


def test_a_folder_is_credentialed_where_the_user_says_so(films):
    assert not table(films, "image\na.png\n").credentialed
    made = build_folder(films, credentialed=True)
    assert made.credentialed and made.about == build_folder(films).about
    write_table(made, films / "t.csv")
    assert build_folder(films, "t.csv").credentialed


def test_a_foreign_table_is_read_by_naming_its_columns(films):
    (films / "metadata.csv").write_text("file,note,prompt\na.png,small nodule,unused\n")
    (record,) = build_folder(films, columns={"image": "file", "prompt": "note"})
    assert record.prompt == "small nodule" and record.facts == {"prompt": "unused"}
    with pytest.raises(ValueError, match="no column picture; its columns are file, note, prompt"):
        build_folder(films, columns={"image": "picture"})
    with pytest.raises(ValueError, match="columns caption: known are"):
        build_folder(films, columns={"caption": "note"})


def test_any_set_comes_back_from_its_table(films):
    records = (
        Record("1", 'a "quoted", text', films / "a.png", truth=Boxes(((0.1, 0, 2 / 3, 1),)), size=(8, 8), label="x"),
        Record("2", "b", films / "b.png", truth=MaskFile(films / "mask.png", (1, 3)), labels={"Edema": False}),
        Record("3", "c", films / "b.png", 4, Outlines((Polygon((0, 0, 4, 0, 4, 4.5)), Runs((60, 4), (8, 8))))),
        Record("4", "d", words=("dog#1", "dog#2"), patient="p", split="s", unit="HU", facts={"license": "CC BY, 4.0"}),
    )
    made = Dataset("mine", records, {"reason": 3}, {"option": 1}, credentialed=True)
    for place in (films / "out.csv", films / "elsewhere" / "out.csv"):
        place.parent.mkdir(exist_ok=True)
        path = write_table(made, place)
        assert build_folder(path.parent, path.name) == made
        assert stat.S_IMODE(path.stat().st_mode) == 0o600  # credentialed: for its owner's eyes only
    assert "a.png" in (films / "out.csv").read_text() and str(films) not in (films / "out.csv").read_text()


def test_a_private_table_is_never_without_its_flag_nor_readable_by_others(films, monkeypatch):
    made, seen = Dataset("mine", (Record("1", "a", films / "a.png"),), credentialed=True), []
    path_type = type(films)
    replace = path_type.replace

    def watched(self, target):
        seen.append((target.name, stat.S_IMODE(self.stat().st_mode)))
        return replace(self, target)

    monkeypatch.setattr(path_type, "replace", watched)
    write_table(made, films / "t.csv")
    assert seen == [("t.dataset.json", 0o600), ("t.csv", 0o600)]
    write_table(Dataset("open", made.records), films / "t.csv", overwrite=True)
    assert [name for name, _ in seen[2:]] == ["t.csv", "t.dataset.json"]


def test_only_a_table_of_ours_is_replaced_and_only_when_asked(films):
    made = table(films, "image\na.png\n")
    before = (films / "metadata.csv").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"has no metadata\.dataset\.json beside it, so it is not replaced"):
            write_table(made, films / "metadata.csv", overwrite=overwrite)
    assert (films / "metadata.csv").read_bytes() == before
    write_table(made, films / "t.csv")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_table(made, films / "t.csv")
    write_table(made, films / "t.csv", overwrite=True)
    with pytest.raises(FileExistsError, match="is what the set is built from"):
        place_of(films / "t.csv", overwrite=True, source=films / "t.csv")
    for name in ("t.txt", "t.csv.gz", "t"):  # they would share, or replace, what lies beside t.csv
        with pytest.raises(ValueError, match=r"ends in \.csv"):
            write_table(made, films / name)


def test_a_path_that_is_not_in_utf_8_is_named(films, tmp_path_factory):
    odd = films / os.fsdecode(b"f\xff")
    odd.mkdir()
    (films / "a.png").rename(odd / "a.png")
    made = table(odd, "image\na.png\n")
    write_table(made, odd / "t.csv")  # paths below the table are relative to it
    assert build_folder(odd, "t.csv").records == made.records
    with pytest.raises(ValueError, match=r"would hold '.*f\\udcff', which is not in UTF-8; rename"):
        write_table(made, tmp_path_factory.mktemp("other") / "t.csv")


def test_a_set_is_built_by_its_name(films):
    (films / "metadata.csv").write_text("image\na.png\n")
    assert len(build("folder", films)) == 1
    with pytest.raises(ValueError, match="no data set 'mimic'; there are folder, ms-cxr"):
        build("mimic", films)
    with pytest.raises(ValueError, match="mimic-cxr: missing a required argument: 'uncertain'; its options are"):
        build("mimic-cxr", films)
    with pytest.raises(ValueError, match="unexpected keyword argument 'tables'"):
        build("folder", films, tables="x")
    with pytest.raises(ValueError, match="your own copy"):
        build("coco")
    with pytest.raises(ValueError, match="shared-brain_mri: .*'split'; its options are none"):
        build("shared-brain_mri", films, split="train")
