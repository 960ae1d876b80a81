"""`voxplain fidelity`: worked figures from files, everything that they depend on, and refusals in one line."""

import csv
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import call, refused

from voxplain.datasets.phantom.findings import KINDS
from voxplain.geometry import regular
from voxplain.io.nifti import write_volume
from voxplain.metrics import Features, fid, load_features, ms_ssim, psnr, save_features
from voxplain.models.reader import Reader
from voxplain.studies import judging
from voxplain.studies.fidelity import pooled
from voxplain.studies.judging import OUTPUTS, LearnedReader


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("VOXPLAIN_DEBUG", raising=False)


@pytest.fixture
def features(tmp_path):
    """Two sets of 60 images in 3 dimensions."""
    rng, paths = np.random.default_rng(0), []
    for name, shift in (("real", 0), ("made", 1)):
        made = Features(rng.normal(shift, 1, (60, 3)), "net", "512 center crop")
        paths.append(save_features(made, tmp_path / f"{name}.npy"))
    return paths


def pictures(folder, count, seed=0, noise=0.0):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).random((32, 32))
        pixels = pixels + noise * np.random.default_rng(seed).normal(size=(32, 32))
        Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_distances_of_two_files_say_all_that_they_depend_on(features):
    result = call("fidelity", *features)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["FID", "KID", "precision", "recall"]
    for line in lines:
        assert "60 real and 60 generated images, 3 dimensions of net; 512 center crop" in line
        assert "real-real floor" in line and "at 30 against 30" in line
    document = json.loads(call("fidelity", *features, "--json").stdout)
    assert document["distances"][0]["value"] == pytest.approx(fid(*map(load_features, features)).value)


def test_few_images_and_other_networks_are_refused(features, tmp_path):
    few = save_features(Features(np.eye(3)[:2], "net", "512 center crop"), tmp_path / "few.npy")
    refused(call("fidelity", few, few), "2 images in 3 dimensions", "allow_few")
    other = save_features(Features(np.ones((60, 3)), "other net", "512 center crop"), tmp_path / "other.npy")
    refused(call("fidelity", features[0], other), "differ in network: 'net' and 'other net'")
    np.save(tmp_path / "bare.npy", np.ones((60, 3)))
    refused(call("fidelity", features[0], tmp_path / "bare.npy"), "bare.json is missing")


def test_pairs_are_made_by_name_and_the_rest_is_counted(tmp_path):
    real, made = pictures(tmp_path / "real", 3), pictures(tmp_path / "made", 2, noise=0.1)
    result = call("fidelity", real, made, "--data-range", 1, "--scales", 2, "--json")
    assert result.exit_code == 0, result.stderr
    table = json.loads(result.stdout)
    assert "2 pairs by name, 1 images without a partner" in table["note"]
    figures = {row[0]: row[1:] for row in table["rows"]}
    expected = [
        psnr(*(np.asarray(Image.open(folder / f"{number}.png")) / 255 for folder in (real, made)), data_range=1.0)
        for number in range(2)
    ]
    assert figures["PSNR"][0][0] == pytest.approx(np.mean(expected), rel=1e-5) and figures["PSNR"][1] == 2
    same = json.loads(call("fidelity", real, real, "--data-range", 1, "--scales", 2, "--json").stdout)
    assert same["rows"][0][1:] == [None, 0, "the images are equal 3"] and same["rows"][2][1][0] == pytest.approx(1)
    refused(call("fidelity", real, made), "give --data-range")
    refused(call("fidelity", real, made, "--data-range", 1), "is too small for a window of 11 at 5 scales")
    refused(call("fidelity", real, tmp_path / "none", "--data-range", 1), "is no folder")


def test_volumes_are_paired_as_pictures_are(tmp_path):
    for name, value in (("real", 0.0), ("made", 200.0)):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "a.nii.gz", np.full((8, 8, 8), value), regular((8, 8, 8), 1.0))
    options = ("--data-range", 2000, "--scales", 1, "--window", 3, "--json")
    made = json.loads(call("fidelity", tmp_path / "real", tmp_path / "made", *options).stdout)
    assert made["rows"][0][1][0] == pytest.approx(20)


def test_diversity_is_read_within_prompts_beside_different_prompts(tmp_path):
    folder = pictures(tmp_path / "images", 3)
    lines = [("images/0.png", "a"), ("images/0.png", "a"), ("images/1.png", "b"), ("images/2.png", "b")]
    with (tmp_path / "made.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *lines])
    result = call("fidelity", tmp_path / "made.csv", "--data-range", 1, "--scales", 2, "--json")
    assert result.exit_code == 0, result.stderr
    rows = {row[0]: row[1:] for row in json.loads(result.stdout)["rows"]}
    one, two = (np.asarray(Image.open(folder / f"{number}.png")) / 255 for number in (1, 2))
    expected = (1 + ms_ssim(one, two, data_range=1.0, scales=2)) / 2
    assert rows["within prompts"][0][0] == pytest.approx(expected, rel=1e-5)
    assert rows["within prompts"][1] == rows["across prompts"][1] == 2
    (tmp_path / "single.csv").write_text("image,prompt\nimages/0.png,a\nimages/1.png,b\n")
    refused(call("fidelity", tmp_path / "single.csv", "--data-range", 1), "no prompt has two images")


def test_a_classifiers_scores_become_an_auc_a_finding(tmp_path):
    np.save(tmp_path / "scores.npy", np.array([[0.9], [0.4], [0.5], [0.1], [0.0]]))
    refused(call("fidelity", tmp_path / "scores.npy"), "scores.json is missing")
    (tmp_path / "scores.json").write_text("{")
    refused(call("fidelity", tmp_path / "scores.npy"), "scores.json is no JSON", '"outputs": [...]')
    (tmp_path / "scores.json").write_text("{}")
    refused(call("fidelity", tmp_path / "scores.npy"), "scores.json must hold")
    labels = ["Pleural Effusion", "Pleural Effusion", "No Finding", "No Finding", "Edema|Pleural Effusion"]
    said = {"network": "net", "outputs": ["Effusion"], "labels": labels}
    (tmp_path / "scores.json").write_text(json.dumps(said))
    made = json.loads(call("fidelity", tmp_path / "scores.npy", "--json").stdout)
    assert made["rows"] == [["Pleural Effusion", 0.75, 2, 2], ["mean over findings", 0.75, None, None]]
    (tmp_path / "scores.json").write_text(json.dumps({**said, "labels": ["Mass"] * 5}))
    refused(call("fidelity", tmp_path / "scores.npy"), "no output 'Mass' for 'Mass'; it has Effusion: say which")
    refused(call("fidelity", tmp_path / "none.npy"), "none.npy is missing")


def test_what_a_classifier_calls_a_finding_can_be_said(tmp_path):
    np.save(tmp_path / "scores.npy", np.array([[0.9], [0.4], [0.5], [0.1]]))
    said = {"network": "net", "outputs": ["fluid"], "labels": ["Effusion", "Effusion", "normal", "normal"]}
    (tmp_path / "scores.json").write_text(json.dumps(said))
    refused(call("fidelity", tmp_path / "scores.npy", "--as", "Effusion=fluid"), "no output 'normal'")
    refused(call("fidelity", tmp_path / "scores.npy", "--as", "Effusion"), "--as Effusion: give it as NAME=VALUE")
    options = ("--as", "Effusion=fluid", "--healthy", "normal", "--json")
    made = json.loads(call("fidelity", tmp_path / "scores.npy", *options).stdout)
    assert made["rows"][0] == ["Effusion", 0.75, 2, 2]
    assert "against 'normal'" in made["note"] and "read Effusion by fluid" in made["note"]


@pytest.fixture
def reader(monkeypatch):
    torch.manual_seed(0)
    network = Reader(3, len(OUTPUTS), windows=[[-1000, 1000]], width=8, dilations=(1,)).eval()
    made = LearnedReader(network, dict.fromkeys(KINDS, 1.0), "abc")
    monkeypatch.setattr(judging, "load_reader", lambda *folder: made)
    return made


def test_our_own_reader_gives_features_and_scores(reader, tmp_path):
    lines = [("file", "label")]
    for name, seed in (("real", 0), ("made", 1)):
        (tmp_path / name).mkdir()
        for number in range(6):
            values = np.random.default_rng((seed, number)).normal(-500, 200, (8, 8, 8))
            write_volume(tmp_path / name / f"{number}.nii.gz", values, regular((8, 8, 8), 5.0))
            lines.append((f"{number}.nii.gz", "effusion" if number % 2 else "No Finding"))
    both = tmp_path / "real", tmp_path / "made"
    refused(call("fidelity", *both, "--reader", "shipped"), "6 images in 8 dimensions")
    result = call("fidelity", *both, "--reader", "shipped", "--allow-few")
    assert "8 dimensions of voxplain reader abc" in result.stdout, result.stderr
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    made = json.loads(
        call("fidelity", both[0], "--reader", "any", "--labels", tmp_path / "labels.csv", "--json").stdout
    )
    assert made["rows"][0][0] == "effusion" and made["rows"][0][2:] == [3, 3] and 0 <= made["rows"][0][1] <= 1
    refused(call("fidelity", both[0], "--reader", "any"), "two folders, or one folder and --labels")


def test_volumes_of_other_voxels_than_the_readers_are_refused_where_the_file_says_so(reader, tmp_path):
    volume, folder, labels = np.full((8, 8, 8), -500.0), tmp_path / "volumes", tmp_path / "labels.csv"
    labels.write_text("file,label\na.nii.gz,effusion\n")
    folder.mkdir()
    commands = (folder, folder, "--reader", "any", "--allow-few"), (folder, "--reader", "any", "--labels", labels)
    for spacing, said in (((5.0, 0.7, 0.7), "5 x 0.7 x 0.7"), (4.9, "4.9 x 4.9 x 4.9")):
        write_volume(folder / "a.nii.gz", volume, regular((8, 8, 8), spacing))
        for command in commands:
            refused(call("fidelity", *command), f"a.nii.gz has voxels of {said} mm", "reads voxels of 5 x 5 x 5 mm")
    for accepted in (regular((8, 8, 8), 5.04), replace(regular((8, 8, 8), 1.0), spacing_known=False)):
        write_volume(folder / "a.nii.gz", volume, accepted)
        result = call("fidelity", *commands[1])
        assert result.exit_code == 0, result.stderr


def test_pooled_features_are_what_the_head_is_given(reader):
    volume = np.random.default_rng(0).normal(-500, 200, (8, 8, 8)).astype(np.float32)
    made = pooled(reader.network, volume)
    head = reader.network.head.get_submodule("conv")
    with torch.no_grad():
        answers = reader.network(torch.from_numpy(volume)[None, None]).mean()
        expected = (head.weight.flatten(1) @ torch.from_numpy(made) + head.bias).mean()
    assert float(answers) == pytest.approx(float(expected), rel=1e-4)
    assert not reader.network.head._forward_pre_hooks


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs docs/scripts/features.py with two networks that are not there; gives what each was shown, per picture."""
    shown = []

    class Net:
        targets = ["Effusion"]

        def eval(self):
            return self

        def __call__(self, image):
            return image.mean((2, 3))

        def features2(self, image):
            shown.append(image)
            return image.flatten(1)[:, :2]

    class Inception(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])

        def forward(self, image):
            shown.append(image)
            return (image.float().mean((2, 3)),)

    fakes = {name: ModuleType(name) for name in ("torchxrayvision", "torch_fidelity")}
    fakes["torchxrayvision"].models = SimpleNamespace(DenseNet=lambda weights: Net())
    fakes["torchxrayvision"].datasets = SimpleNamespace(normalize=lambda pixels, top: 2048 * pixels / top - 1024)
    extractor = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    extractor.FeatureExtractorInceptionV3 = Inception
    for name, fake in {**fakes, extractor.__name__: extractor}.items():
        monkeypatch.setitem(sys.modules, name, fake)
    path = Path(__file__).parents[2] / "docs" / "scripts" / "features.py"

    def run(*options):
        shown.clear()
        monkeypatch.setattr(sys, "argv", ["features.py", *map(str, options)])
        runpy.run_path(str(path), run_name="__main__")
        return list(shown)

    return run


def pictured(folder, **pictures):
    """A folder of PNG files, of arrays or pictures."""
    folder.mkdir()
    for name, pixels in pictures.items():
        (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(folder / f"{name}.png")
    return folder


def test_the_script_for_another_environment_writes_what_the_verb_reads(script, tmp_path):
    folder = pictures(tmp_path / "films", 4)
    rows = [f"{number}.png,{'Pleural Effusion' if number < 2 else 'No Finding'}" for number in range(4)]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\n".join(["file,label", *rows]), encoding="utf-8")
    name = tmp_path / "made"
    script("xrv", folder, name, "--labels", tmp_path / "labels.csv")
    assert load_features(f"{name}.npy").values.shape == (4, 2)
    made = call("fidelity", f"{name}-scores.npy")
    assert made.exit_code == 0 and "Pleural Effusion" in made.stdout
    assert call("fidelity", f"{name}.npy", f"{name}.npy").exit_code == 0
    script("inception", folder, name)
    assert load_features(f"{name}.npy").values.shape == (4, 3)


def test_both_networks_see_the_middle_of_the_picture_and_the_file_says_so(script, tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (512, 700), np.uint8)
    folder = pictured(tmp_path / "films", wide=wide)
    (gray,) = script("xrv", folder, tmp_path / "xrv")
    assert gray.shape == (1, 1, 512, 512) and gray.dtype == torch.float32
    np.testing.assert_allclose(gray[0, 0], 2048 * wide[:, 94:606].astype(np.float32) / 255 - 1024, rtol=1e-6)
    (color,) = script("inception", folder, tmp_path / "inception")
    assert color.shape == (1, 3, 512, 512) and color.dtype == torch.uint8
    np.testing.assert_array_equal(color[0], np.broadcast_to(wide[:, 94:606], (3, 512, 512)))
    said = [load_features(tmp_path / name).preprocessing for name in ("xrv", "inception")]
    assert all("short side 512 (bilinear), center crop 512" in each for each in said)
    assert "-1024 to 1024" in said[0] and "RGB" in said[1] and "299" in said[1]
    halves = np.repeat(np.uint8([[0, 255]]), 1024, 1).repeat(1024, 0)  # 1024 x 2048, black left and white right
    (gray,) = script("xrv", pictured(tmp_path / "large", halves=halves), tmp_path / "xrv")
    assert gray.shape == (1, 1, 512, 512) and (gray[..., :254] == -1024).all() and (gray[..., 258:] == 1024).all()


def test_a_picture_of_sixteen_bits_is_scaled_by_its_white_and_a_black_one_goes_through(script, tmp_path):
    levels = np.random.default_rng(1).integers(0, 256, (512, 512))
    pixels = {"deep": (257 * levels).astype(np.uint16), "eight": levels.astype(np.uint8), "black": 0 * levels}
    folder = pictured(tmp_path / "films", **{**pixels, "black": pixels["black"].astype(np.uint8)})
    black, deep, eight = script("xrv", folder, tmp_path / "made")
    np.testing.assert_array_equal(deep, eight)
    assert (black == -1024).all() and eight.min() == -1024 and eight.max() == 1024
    for seen in script("inception", folder, tmp_path / "made")[1:]:
        np.testing.assert_array_equal(seen[0, 0], levels)
    bits = Image.fromarray(levels > 100)
    assert bits.mode == "1"
    (seen,) = script("xrv", pictured(tmp_path / "bits", bits=bits), tmp_path / "made")
    assert (seen.min(), seen.max()) == (-1024, 1024)


def test_pictures_that_would_be_misread_are_refused_by_name(script, tmp_path):
    for kind in (np.uint8, np.uint16):
        folder = pictured(tmp_path / kind.__name__, film=np.eye(8, dtype=kind))
        with pytest.raises(SystemExit, match="film.png holds 0 and 1 alone, expected 0 to .*: multiply it"):
            script("xrv", folder, tmp_path / "made")
    folder = tmp_path / "cmyk"
    folder.mkdir()
    Image.new("CMYK", (8, 8)).save(folder / "film.jpg")
    for network in ("xrv", "inception"):
        with pytest.raises(SystemExit, match="film.jpg is a picture of mode CMYK: save it as gray"):
            script(network, folder, tmp_path / "made")
    assert not (tmp_path / "made.npy").exists()


def test_labels_need_their_columns_every_picture_and_a_network_with_scores(script, tmp_path):
    folder, labels = pictures(tmp_path / "films", 2), tmp_path / "labels.csv"
    labels.write_text("image,label\n0.png,Edema\n")
    with pytest.raises(SystemExit, match="labels.csv has the columns image, label; expected file and label"):
        script("xrv", folder, tmp_path / "made", "--labels", labels)
    for content in ("file,label\n", "file,label\n0.png,Edema\n"):
        labels.write_text(content)
        with pytest.raises(SystemExit, match="labels.csv has no label for"):
            script("xrv", folder, tmp_path / "made", "--labels", labels)
    with pytest.raises(SystemExit, match="--labels is for the scores of xrv, and inception gives none"):
        script("inception", folder, tmp_path / "made", "--labels", labels)
