"""The run folders that are served, by names that we gave them; nothing else on the disk can be asked for."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxplain.io.folders import safe_name
from voxplain.io.nifti import read_volume
from voxplain.io.run import RunError, load_run
from voxplain.maps import Explanation, Sample

KEPT = 4  # runs that stay in memory
KINDS = {"without": "total", "swapped": "swap"}  # a volume made again, and the file name of its difference


@dataclass(frozen=True, slots=True)
class Variant:
    """The image made again from the same noise, without a word or with its side swapped, and the difference."""

    kind: str
    word: str
    image: Path
    difference: Path


class Library:
    """Runs by id. Ids are made here, and paths come only from the folders given, so no request can name a path."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders: dict[str, Path] = {}
        self._loaded: OrderedDict[str, tuple[int, Explanation]] = OrderedDict()
        self._lock = threading.Lock()
        for folder in folders:
            self.add(folder)

    def add(self, folder: Path) -> str:
        """Serve this folder, too; gives its id. Raises RunError for what is no run folder."""
        folder = folder.expanduser().resolve()
        if not (folder / "run.json").is_file():
            raise RunError(f"{folder} is not a run folder: it has no run.json; make one with `voxplain explain`")
        with self._lock:
            known = next((name for name, path in self._folders.items() if path == folder), None)
            if known:
                return known
            stem, number = safe_name(folder.name), 1
            while (name := stem if number == 1 else f"{stem}-{number}") in self._folders:
                number += 1
            self._folders[name] = folder
            return name

    @property
    def ids(self) -> list[str]:
        """All runs in the order in which they came."""
        return list(self._folders)

    def folder(self, run: str) -> Path:
        """The folder of a run; KeyError for an id that was never given out."""
        return self._folders[run]

    def load(self, run: str) -> Explanation:
        """The run, from memory unless its folder has changed; RunError where it is damaged or leads elsewhere."""
        folder = self.folder(run)
        document = self.inside(folder, "run.json")
        try:
            stamp = document.stat().st_mtime_ns
        except OSError as error:
            raise RunError(f"{folder} has no run.json any more") from error
        with self._lock:
            kept = self._loaded.get(run)
            if kept and kept[0] == stamp:
                self._loaded.move_to_end(run)
                return kept[1]
        for path in (folder / "sample.nii.gz", *sorted(folder.glob("*.npz"))):
            self.inside(folder, path.name)
        explanation = load_run(folder)
        with self._lock:
            self._loaded[run] = (stamp, explanation)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        return explanation

    def title(self, run: str) -> dict[str, Any]:
        """Prompt and seed, without reading any array; RunError where the document is damaged."""
        path = self.inside(self.folder(run), "run.json")
        try:
            document = json.loads(path.read_bytes())
            return {"prompt": str(document["prompt"]["text"]), "seed": document["provenance"].get("seed")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from error

    def variants(self, run: str) -> list[Variant]:
        """What was made again of this run's image, by name; RunError for a link that leads out of the folder."""
        folder, prompt = self.folder(run), self.load(run).prompt
        names = dict.fromkeys(prompt.name(word.text, word.occurrence) for word in prompt.words)
        made = {path.name for path in folder.glob("*.nii.gz")}
        files = {safe_name(name): name for name in names}
        found = []
        for kind, change in KINDS.items():
            start, end = f"{kind}-", ".nii.gz"
            for stem in (name.removeprefix(start).removesuffix(end) for name in sorted(made) if name.startswith(start)):
                if f"{change}-{stem}{end}" in made:
                    image, difference = (self.inside(folder, f"{part}-{stem}{end}") for part in (kind, change))
                    found.append(Variant(kind, files.get(stem, stem.replace("-", " ")), image, difference))
        return found

    def variant_samples(self, run: str, number: int) -> tuple[Sample, Sample]:
        """The image of a variant and its difference from the run's; IndexError for one that is not there."""
        sample, variant = self.load(run).sample, self.variants(run)[number]
        images = []
        for path in (variant.image, variant.difference):
            values, geometry = read_volume(path, sample.geometry.ndim)
            values = values.reshape(-1, *geometry.shape).astype("float32")
            images.append(Sample(values, geometry, sample.prompt, unit=sample.unit))
        return images[0], images[1]

    @staticmethod
    def inside(folder: Path, name: str) -> Path:
        """A file of the folder; RunError for a link that leads out of it."""
        path = folder / name
        if path.resolve().parent != folder.resolve():
            raise RunError(f"{path} leads out of its run folder, so it is not served")
        return path
