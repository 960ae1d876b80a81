"""What a viewer asks of DICOMweb is answered from the objects of an export, and nothing else is."""

import numpy as np
import pytest
from synthetic import explained

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("highdicom", reason="needs the extra dicom")
fastapi = pytest.importorskip("fastapi", reason="needs the extra viewer")
testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")

from voxplain.io.dicom import export  # noqa: E402
from voxplain.serve.dicomweb import PREFIX, Archive, dicomweb_router  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames of 10 x 14 pixels: those of single bits do not end with a byte."""
    return export(explained((8, 10, 14)), tmp_path_factory.mktemp("web") / "out", ["Large", "effusion#2"])


@pytest.fixture(scope="module")
def objects(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


@pytest.fixture(scope="module")
def client(folder):
    app = fastapi.FastAPI()
    app.include_router(dicomweb_router(Archive(folder)))
    return testclient.TestClient(app)


def get(client, path, accept=None, status=200):
    answer = client.get(PREFIX + path, headers={"accept": accept} if accept else {})
    assert answer.status_code == status, answer.text
    return answer


def parts(answer):
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind.startswith("multipart/related; type=")
    found = answer.content.split(f"--{boundary}".encode())
    assert found[0] == b"" and found[-1] == b"--\r\n"
    return [part.split(b"\r\n\r\n", 1)[1][:-2] for part in found[1:-1]]


def where(one, instance=True):
    place = f"/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}"
    return f"{place}/instances/{one.SOPInstanceUID}" if instance else place


def kind(objects, name):
    return [one for one in objects if one.SOPClassUID.name == f"{name} Storage"]


def test_the_study_is_found_with_its_counts_and_by_what_it_is(client, objects):
    study = objects[0].StudyInstanceUID
    (row,) = get(client, "/studies").json()
    assert row["0020000D"]["Value"] == [study]
    assert row["00201208"]["Value"] == [len(objects)]
    assert row["00080061"]["Value"] == sorted({one.Modality for one in objects})
    assert row["00081190"]["Value"][0].endswith(f"{PREFIX}/studies/{study}")
    date = row["00080020"]["Value"][0]
    for query, count in {
        f"StudyInstanceUID={study}": 1,
        f"0020000D=1.2,{study}": 1,
        "StudyInstanceUID=1.2": 0,
        "PatientName=*synth*&fuzzymatching=false&includefield=all": 1,
        "00100020=VOXPLAIN-*": 1,
        "PatientName=[a-z]*": 0,
        "ModalitiesInStudy=SEG": 1,
        "ModalitiesInStudy=MR": 0,
        "AccessionNumber=": 1,
        f"StudyDate={date}-": 1,
        f"StudyDate=19000101-{int(date) - 1}": 0,
        "limit=0": 0,
        "offset=1": 0,
    }.items():
        assert len(get(client, f"/studies?{query}").json()) == count, query


@pytest.mark.parametrize("query", ["NoSuchName=1", "limit=-1", "limit=x", "offset=1e3"])
def test_a_search_that_cannot_be_understood_is_refused(client, query):
    get(client, f"/studies?{query}", status=400)


def test_series_and_instances_are_listed(client, objects):
    study = objects[0].StudyInstanceUID
    rows = get(client, f"/studies/{study}/series").json()
    assert {row["0020000E"]["Value"][0]: row["00201209"]["Value"][0] for row in rows} == {
        one.SeriesInstanceUID: sum(other.SeriesInstanceUID == one.SeriesInstanceUID for other in objects)
        for one in objects
    }
    first = kind(objects, "CT Image")[0]
    for path in (f"{where(first, False)}/instances", f"/studies/{study}/instances?Modality=&SeriesInstanceUID="):
        assert len(get(client, path).json()) == (8 if "series" in path else len(objects))
    rows = get(client, f"/studies/{study}/series?Modality=SEG").json()
    assert len(rows) == len(kind(objects, "Segmentation"))


def test_metadata_is_the_header_with_pixels_behind_a_link(client, objects):
    for name in ("CT Image", "Segmentation", "Parametric Map"):
        one = kind(objects, name)[0]
        (found,) = get(client, f"{where(one)}/metadata").json()
        tag = "7FE00008" if name == "Parametric Map" else "7FE00010"
        link = found.pop(tag)["BulkDataURI"]
        assert found.pop("00083002")["Value"] == [one.file_meta.TransferSyntaxUID]
        keyword = "FloatPixelData" if name == "Parametric Map" else "PixelData"
        assert get(client, link[link.index(PREFIX) + len(PREFIX) :]).content == one[keyword].value
        read = pydicom.Dataset.from_json(found)
        del one[keyword]
        assert read == one
    assert len(get(client, f"{where(kind(objects, 'CT Image')[0], False)}/metadata").json()) == 8


def test_frames_are_those_of_the_file(client, folder, objects):
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    ct, seg, pm = (kind(objects, name)[0] for name in ("CT Image", "Segmentation", "Parametric Map"))
    whole = pydicom.dcmread(folder / "ct" / "0001.dcm")
    assert parts(get(client, f"{where(ct)}/frames/1", accept)) == [whole.PixelData]
    expected = pydicom.dcmread(folder / "seg" / "effect.dcm").pixel_array
    for number, content in zip((2, 1), parts(get(client, f"{where(seg)}/frames/2,1", accept)), strict=True):
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[:140].reshape(10, 14)
        np.testing.assert_array_equal(bits, expected[number - 1])
    paths = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in folder.glob("map/*.dcm")}
    values = pydicom.dcmread(paths[pm.SOPInstanceUID]).pixel_array
    (content,) = parts(get(client, f"{where(pm)}/frames/5"))
    np.testing.assert_array_equal(np.frombuffer(content, "<f4").reshape(10, 14), values[4])


def test_whole_objects_come_in_parts_or_alone(client, folder, objects):
    ct = kind(objects, "CT Image")[0]
    content = (folder / "ct" / "0001.dcm").read_bytes()
    assert parts(get(client, where(ct), 'multipart/related; type="application/dicom"')) == [content]
    alone = get(client, where(ct), "application/dicom")
    assert alone.content == content and alone.headers["content-type"] == "application/dicom"
    assert len(parts(get(client, where(ct, False)))) == 8
    assert len(parts(get(client, f"/studies/{ct.StudyInstanceUID}"))) == len(objects)


def test_what_is_not_there_is_not_found_and_nothing_can_be_written(client, objects):
    ct = where(kind(objects, "CT Image")[0])
    for path in (
        "/studies/1.2.3/series",
        "/studies/1.2.3/metadata",
        f"{ct}/frames/2",
        f"{ct}/frames/0",
        f"{ct}/bulkdata/00100010",
        f"{ct}/rendered",
        "/",
        "/studies/..%2f..%2f..%2fetc%2fpasswd",
        "/studies/%2fetc%2fpasswd/metadata",
    ):
        if not path.endswith("/series"):
            get(client, path, status=404)
    assert get(client, "/studies/1.2.3/series").json() == []
    get(client, f"{ct}/frames/x", status=400)
    get(client, f"{ct}/frames/1", "image/jpeg", status=406)
    get(client, ct, "application/json", status=406)
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)(f"{PREFIX}/studies").status_code == 405


def test_a_folder_without_objects_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no")
    with pytest.raises(ValueError, match="no uncompressed DICOM objects"):
        Archive(tmp_path)
