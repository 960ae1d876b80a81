"""What the page may ask the machine to make: a run, or a run's image again from the same noise with other words."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter, without
from voxplain.io.folders import safe_name
from voxplain.io.nifti import write_volume
from voxplain.io.run import save_run
from voxplain.loading import load
from voxplain.maps import Explanation, Sample
from voxplain.serve.jobs import LONGEST, Report, Worker
from voxplain.serve.library import KINDS, Library
from voxplain.studies import explaining

STEPS, MOST_STEPS, PARTS = 50, 200, 5
SIDES = {"left": "right", "right": "left"}
AGAIN = ("seed", "steps", "guidance_scale", "negative_prompt")


class Maker(Worker):
    """Opens its model when it is first needed, keeps it, and writes run folders into `folder`."""

    def __init__(self, library: Library, model: str, folder: Path, *, device: str | None = None) -> None:
        self._library, self._name, self._folder, self._device = library, model, folder, device
        self._model: Any = None

    def describe(self) -> dict[str, Any]:
        """What the page may offer."""
        where = str(self._folder)
        limits = {"steps": STEPS, "most_steps": MOST_STEPS, "longest": LONGEST}
        return {"model": self._name, "folder": where, **limits}

    def check(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """The wish with whole numbers and a prompt of bearable length; ValueError says what is wrong with it."""
        kind = wanted.get("kind")
        if kind == "run":
            prompt = str(wanted.get("prompt", "")).strip()
            if not 0 < len(prompt) <= LONGEST:
                raise ValueError(f"a prompt has 1 to {LONGEST} characters, and this one {len(prompt)}")
            seed, steps = _whole(wanted, "seed", 0, 2**31 - 1), _whole(wanted, "steps", 1, MOST_STEPS)
            return {"kind": kind, "prompt": prompt, "seed": seed, "steps": steps}
        if kind not in KINDS:
            raise ValueError(f"kind is run, {' or '.join(KINDS)}, not {kind!r}")
        run, word = str(wanted.get("run")), str(wanted.get("word", ""))
        if run not in self._library.ids:
            raise ValueError("there is no such run")
        explanation = self._library.load(run)
        if "readout" in explanation.provenance:
            raise ValueError("this image was given to the model, so it cannot be made again")
        changed(explanation, kind, word)
        return {"kind": kind, "run": run, "word": explanation.prompt.name(word)}

    def make(self, wanted: Mapping[str, Any], report: Report) -> str:
        """A new run folder, or two files more in a run's folder; gives the run's id."""
        if self._model is None:
            report(f"opening {self._name}", 0, 0)
            self._model = load(self._name, device=self._device)
        adapter = as_adapter(self._model)
        if wanted["kind"] == "run":
            return self._new(adapter, wanted, report)
        return self._again(adapter, wanted, report)

    def _new(self, adapter: Adapter, wanted: Mapping[str, Any], report: Report) -> str:
        steps = wanted["steps"]
        made = explaining.explain(
            adapter, wanted["prompt"], seed=wanted["seed"], steps=steps, parts=min(PARTS, steps), progress=report
        )
        report("writing", 0, 0)
        kept = {**made.provenance, "source": self._name, "opened_with": {}}
        stem, number = f"{time.strftime('%Y%m%d-%H%M%S')}-{safe_name(wanted['prompt'])}", 1
        while (place := self._folder / (stem if number == 1 else f"{stem}-{number}")).exists():
            number += 1
        return self._library.add(save_run(replace(made, provenance=kept), place))

    def _again(self, adapter: Adapter, wanted: Mapping[str, Any], report: Report) -> str:
        run, kind, word = wanted["run"], wanted["kind"], wanted["word"]
        explanation, folder = self._library.load(run), self._library.folder(run)
        recorded, ours = explanation.provenance.get("weights"), adapter.weights_hash
        if recorded != ours:
            raise ValueError(
                f"{run} was made with other weights than {self._name}; start with --model MODEL of that run"
            )
        options = {name: explanation.provenance[name] for name in AGAIN}
        text = changed(explanation, kind, word)
        other = adapter.generate(text, **options, progress=lambda done, total: report(f"making “{text}”", done, total))
        assert isinstance(other, Sample)
        change = np.linalg.norm(explanation.sample.image - other.image, axis=0)
        name = safe_name(word)
        write_volume(folder / f"{kind}-{name}.nii.gz", other.image, other.geometry)
        write_volume(folder / f"{KINDS[kind]}-{name}.nii.gz", change, other.geometry)
        return run


def changed(explanation: Explanation, kind: str, word: str) -> str:
    """The prompt without the word, or with left for right at that place; ValueError where that leaves no prompt."""
    prompt = explanation.prompt
    first, last = prompt.match(word)
    if kind == "without":
        rest = without(prompt, prompt.find(word))
        if not re.search(r"\w", rest):
            raise ValueError(f"without {word!r} nothing is left of the prompt")
        return rest
    found = prompt.text[first:last]
    side = SIDES.get(found.lower())
    if side is None:
        raise ValueError(f"{found!r} names no side; choose left or right")
    cased = side.capitalize() if found[0].isupper() else side
    return prompt.text[:first] + cased + prompt.text[last:]


def _whole(wanted: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = wanted.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} = {value!r}; give a whole number from {low} to {high}")
    return value
