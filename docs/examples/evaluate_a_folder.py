"""Score a model on a folder of films: from a CSV file to a report with controls, on a toy whose maps are known.

The masks are the boxes in which the toy attends to each word, so its maps score 1 and a random half scores one half.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from voxplain.adapters.toy import ToyAdapter
from voxplain.datasets.folder import build_folder
from voxplain.studies.benchmark import Settings, evaluate
from voxplain.studies.benchmark_cases import Records

model, films = ToyAdapter((8, 24)), Path("films")
films.mkdir()
lines = ["image,mask,prompt,words,label,patient"]
for number, (text, word) in enumerate([("left effusion", "effusion"), ("small nodule", "nodule")] * 2):
    pixels = np.random.default_rng(number).integers(0, 255, model.geometry.shape)
    mask = 255 * model.box(word).repeat(2, 0).repeat(2, 1)  # the image has twice the cells of the grid
    Image.fromarray(pixels.astype(np.uint8)).save(films / f"{number}.png")
    Image.fromarray(mask.astype(np.uint8)).save(films / f"{number}-mask.png")
    lines.append(f"{number}.png,{number}-mask.png,{text},{word},{word},patient {number}")
(films / "metadata.csv").write_text("\n".join(lines))

settings = Settings(methods=("mean",), steps=4, used=3, metrics=("auc_roc", "pointing_game", "chance_level"))
report = evaluate(Records(build_folder(films)), "report", opener=lambda: model, model="toy", settings=settings)
tables = {table["name"]: table for table in json.loads((report / "results.json").read_text())["tables"]}
for row in tables["auc_roc"]["rows"]:
    found = dict(zip(tables["auc_roc"]["columns"], row, strict=True))
    print(f"{found['finding']}: {found['mean'][0]:.2f}, a random half {found['random half'][0]:.2f}, n = {found['n']}")
    assert found["mean"][0] > 0.98
    assert abs(found["random half"][0] - 0.5) < 0.2
assert (report / "report.html").is_file()
