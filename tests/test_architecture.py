"""Who may import whom. The rooms and their order are explained in docs/architecture.md; here they are enforced."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "voxplain"

# values <- {capture | reading} <- studies <- front: a half sees the halves named here, and itself as SIBLINGS allows.
SEES = {
    "values": set(),
    "capture": {"values"},
    "reading": {"values"},
    "studies": {"values", "capture", "reading"},
    "front": {"values", "capture", "reading", "studies"},
}
ROOMS = {
    "values": ["tokens", "geometry", "resampling", "arrays", "maps", "recipes", "masks", "segments"],
    "capture": ["attention", "models", "adapters", "tracing", "listening"],
    "reading": ["metrics", "scoring", "datasets", "io", "view", "runner"],
    "studies": ["loading", "studies"],
    "front": ["cli", "testing", "serve"],
}
HALF = {room: half for half, rooms in ROOMS.items() for room in rooms}

# Within a half a module sees the `base` of its folder, and these. A name stands for itself and for all below it.
SIBLINGS = {
    # values: the spine, read downward
    "resampling": ["geometry"],
    "maps": ["arrays", "geometry", "resampling", "tokens"],
    "recipes": ["geometry", "maps", "resampling", "tokens"],
    "masks": ["arrays", "geometry", "maps", "tokens"],
    "segments": ["maps", "tokens"],
    # capture
    "models": [
        "models.diagnosis",
        "models.events",
        "models.placing",
        "models.requests",
        "models.schedule",
        "models.storage",
    ],
    "models.bundle": ["models.bundle", "models.latent_diffusion"],
    "models.medsyn": ["models.medsyn"],
    "models.thorax": ["models.latent_diffusion", "models.thorax"],
    "adapters": ["adapters.hooks", "attention", "models.events"],
    "adapters.diffusers": ["adapters.folders", "adapters.generation", "adapters.pipelines", "adapters.prompts"],
    "adapters.monai": ["adapters.own", "models.latent_diffusion"],
    "adapters.medsyn": ["adapters.own", "adapters.slices", "models.medsyn"],
    "adapters.generation": ["adapters.pipelines", "models.requests"],
    "adapters.networks": ["models.requests", "models.schedule"],
    "adapters.toy": ["models.requests"],
    "adapters.passes": ["adapters.joint", "adapters.pipelines"],
    "adapters.dit": ["adapters.generation", "adapters.joint", "adapters.passes"],
    "adapters.transformers": ["adapters.dit", "adapters.joint", "adapters.passes", "adapters.pieces"],
    "adapters.unet3d": [
        "adapters.diffusers",
        "adapters.folders",
        "adapters.generation",
        "adapters.pipelines",
        "adapters.prompts",
        "adapters.slices",
    ],
    "tracing": ["attention", "adapters"],
    "listening": ["adapters.base", "adapters.hooks", "attention", "listening", "models.events", "tracing"],
    # reading
    "metrics.boxes": ["metrics.overlap"],
    "metrics.classification": ["metrics.localization"],
    "metrics.distribution": ["metrics.features"],
    "scoring": ["metrics"],
    "runner": ["datasets.base", "io.folders"],
    "datasets.phantom.findings": ["datasets.phantom.anatomy"],
    "datasets.phantom.cases": ["datasets.phantom.anatomy", "datasets.phantom.findings"],
    "datasets.phantom.wording": ["datasets.phantom.lexicon"],
    "datasets.phantom.impressions": ["datasets.phantom"],
    "datasets.phantom.shapes": ["datasets.phantom.registration"],
    "datasets.phantom.segmenter": [
        "datasets.phantom.anatomy",
        "datasets.phantom.registration",
        "datasets.phantom.shapes",
    ],
    "datasets.reading": ["datasets.frames", "datasets.shapes", "io.nifti"],
    "datasets.folder": ["datasets.tables", "io.folders"],
    "datasets.labels": ["datasets.tables"],
    "datasets.mscxr": ["datasets.shapes", "datasets.tables"],
    "datasets.mimic_cxr": ["datasets.labels", "datasets.mscxr", "datasets.tables"],
    "datasets.chexpert_plus": ["datasets.labels", "datasets.tables"],
    "datasets.coco": ["datasets.shapes", "datasets.tables"],
    "datasets.prompts": ["datasets.coco"],
    "datasets.shared": ["datasets.folder", "datasets.tables"],
    "datasets.opening": ["datasets"],
    "view.charts": ["view.tables"],
    "view.scoreboard": ["view.markup", "view.tables"],
    "view.figure": ["view.overlay", "view.words"],
    "view.markup": ["view.overlay", "view.words"],
    "view.page": ["view.markup", "view.overlay", "view.words"],
    "io": ["io.folders"],
    "io.dicom": ["io.dicom_objects", "view.words"],
    "io.dicom_objects": ["view.overlay"],
    "io.dicom_series": ["io.dicom_objects", "io.nifti"],
    "io.nifti": ["io.encoding"],
    "io.placing": ["io.nifti"],
    "io.run": ["io.encoding", "io.nifti", "view"],
    # studies
    "studies.inverting": ["studies.effect"],
    "studies.support": ["studies.effect", "studies.inverting"],
    "studies.grounding": [
        "studies.effect",
        "studies.fitting",
        "studies.honesty",
        "studies.inverting",
        "studies.support",
    ],
    "studies.owing": ["studies.effect", "studies.inverting", "studies.support"],
    "studies.baselines": ["studies.effect", "studies.grounding", "studies.owing", "studies.support"],
    "studies.benchmark_cases": ["studies.fitting"],
    "studies.benchmark_words": ["studies.benchmark_cases"],
    "studies.benchmark_phantoms": ["studies.benchmark_cases", "studies.fitting"],
    "studies.benchmark_published": ["studies.benchmark_tables"],
    "studies.benchmark_report": [
        "studies.benchmark_cases",
        "studies.benchmark_published",
        "studies.benchmark_tables",
        "studies.benchmark_words",
    ],
    "studies.benchmark": [
        "studies.baselines",
        "studies.benchmark_cases",
        "studies.benchmark_report",
        "studies.benchmark_tables",
        "studies.benchmark_words",
        "studies.grounding",
        "studies.rules",
    ],
    "studies.sanity": [
        "studies.effect",
        "studies.fitting",
        "studies.grounding",
        "studies.honesty",
        "studies.sanity_weights",
    ],
    "studies.fidelity": ["studies.judging"],
    "studies.loop": ["studies.optimizing"],
    "studies.judging": ["studies.loop"],
    "studies.readers": ["studies.reader_plan"],
    "studies.reader_folder": ["studies.reader_plan", "studies.readers"],
    "studies.reading": ["studies.judging", "studies.loop"],
    "studies.phrases": ["studies.loop"],
    "studies.training": [
        "studies.loop",
        "studies.optimizing",
        "studies.phrases",
        "studies.pool",
        "studies.weighing",
        "studies.levels",
    ],
    "studies.explaining": [
        "studies.effect",
        "studies.fitting",
        "studies.grounding",
        "studies.honesty",
        "studies.support",
    ],
    "studies.given": ["studies.benchmark", "studies.benchmark_cases", "studies.fitting", "studies.rules"],
    # front
    "serve.ohif": ["serve.dicomweb", "serve.guard"],
    "cli": ["serve", "testing"],
    "cli.checking": ["cli.opening"],
    "cli.evaluating": ["cli.datasets", "cli.opening"],
    "cli.grounding": ["cli.making", "cli.opening"],
    "cli.making": ["cli.opening"],
    "serve.describing": ["serve.packing"],
    "serve.offline": ["serve.describing", "serve.packing", "serve.page"],
    "serve.notebook": ["serve.offline"],
    "serve.api": ["serve.describing", "serve.jobs", "serve.library", "serve.packing"],
    "serve.generating": ["serve.jobs", "serve.library"],
    "serve.app": ["serve.api", "serve.guard", "serve.jobs", "serve.library", "serve.offline", "serve.page"],
    "serve.starting": ["serve.guard"],
    "serve.study": ["serve.describing", "serve.guard", "serve.library", "serve.packing", "serve.page"],
    "testing": ["testing"],
}
HEAVY = {"torch", "monai", "transformers", "diffusers", "torchvision"}  # what values and reading never load


def imports(path: Path, module: str, root: Path) -> Iterator[str]:
    """Every dotted name that a file imports: at the top, in functions, under TYPE_CHECKING, by `import_module`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                below = root.parent.joinpath(*source.split("."), alias.name)
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                yield f"{source}.{alias.name}" if is_module or source == root.name else source
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def allowed(importer: str, imported: str) -> bool:
    """Whether one of our modules may import another; names are dotted and without the leading `voxplain.`."""
    ours, theirs = HALF[importer.split(".")[0]], HALF[imported.split(".")[0]]
    if theirs in SEES[ours]:
        return True
    if ours != theirs:
        return False
    folder = importer.rpartition(".")[0]
    near = [f"{folder}.base"] if folder else []
    up = [
        ".".join(importer.split(".")[:count]) for count in range(1, importer.count(".") + 2)
    ]  # itself and its folders
    near += [sibling for name in up for sibling in SIBLINGS.get(name, [])]
    return any(imported == name or imported.startswith(f"{name}.") for name in near)


def violations(root: Path) -> list[str]:
    """Each import that breaks the order, as a sentence."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        importer = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not importer:
            continue  # the table of contents: it names everything and imports when asked
        if importer.split(".")[0] not in HALF:
            found.append(f"{importer} has no place: give it a half in ROOMS")
            continue
        for name in imports(path, f"{root.name}.{importer}", root):
            first, _, imported = name.partition(".")
            if first in HEAVY and HALF[importer.split(".")[0]] in ("values", "reading"):
                found.append(f"{importer} must not load {first}")
            if first != root.name or imported in ("", "__version__", importer):
                continue
            own = path.name == "__init__.py" and imported.startswith(f"{importer}.")  # a folder's own table of contents
            if imported.split(".")[0] not in HALF:
                found.append(f"{importer} imports {name} through the table of contents: name the module it lives in")
            elif not own and not allowed(importer, imported):
                found.append(f"{importer} must not import {imported}")
    return found


def test_every_import_points_along_the_order():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("path", "code", "complaint"),
    [
        ("maps.py", "def late():\n    from voxplain.studies import effect\n", "maps must not import studies"),
        ("metrics/controls.py", "from ..models import thorax\n", "metrics.controls must not import models"),
        ("tokens.py", "if TYPE_CHECKING:\n    from .maps import Heatmap\n", "tokens must not import maps"),
        ("view/page.py", "from voxplain.view.figure import draw\n", "view.page must not import view.figure"),
        (
            "io/run.py",
            "from importlib import import_module\nimport_module('voxplain.cli')\n",
            "io.run must not import cli",
        ),
        ("scoring.py", "def late():\n    import torch.nn\n", "scoring must not load torch"),
        ("studies/effect.py", "from voxplain import explain\n", "through the table of contents"),
        ("extra.py", "", "extra has no place"),
    ],
)
def test_a_wrong_import_is_found_wherever_it_hides(tmp_path, path, code, complaint):
    root = tmp_path / "voxplain"
    for name in ("maps.py", "cli.py", "models/thorax.py", "view/figure.py", "studies/effect.py", path):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / path).write_text(code)
    found = violations(root)
    assert len(found) == 1, found
    assert complaint in found[0]


def test_what_the_order_allows_is_not_refused(tmp_path):
    root = tmp_path / "voxplain"
    (root / "adapters").mkdir(parents=True)
    (root / "adapters" / "__init__.py").write_text("from .toy import Toy\nfrom voxplain import __version__\n")
    (root / "adapters" / "toy.py").write_text(
        "from .base import Adapter\nfrom ..attention import AttentionCall\nimport torch"
    )
    (root / "adapters" / "base.py").write_text("from voxplain.tokens import TokenizedPrompt\n")
    assert violations(root) == []


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


TORCH_FREE = """
import importlib, pkgutil, sys
import voxplain

def load(name):
    module = importlib.import_module(name)
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), name + "."):
        load(found.name)

here = {found.name for found in pkgutil.iter_modules(voxplain.__path__)}
for room in ROOMS:
    if room in here:
        load("voxplain." + room)
        loaded = sorted(HEAVY & set(sys.modules))
        assert not loaded, f"voxplain.{room} loads {loaded}"
importlib.import_module("voxplain.attention")
assert "torch" in sys.modules, "the capture half loads torch; if it does not, this test sees nothing"
"""


def test_values_and_the_reading_half_load_no_torch_and_the_capture_half_does():
    run(f"ROOMS, HEAVY = {ROOMS['values'] + ROOMS['reading']!r}, {HEAVY!r}\n{TORCH_FREE}")


HELP = """
import sys
from voxplain.cli import main

sys.argv = ["voxplain", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = sorted((HEAVY | {"matplotlib", "scipy", "nibabel"}) & set(sys.modules))
assert not loaded, f"voxplain --help loads {loaded}"
"""


def test_the_help_page_loads_nothing_heavy():
    run(f"HEAVY = {HEAVY!r}\n{HELP}")


PUBLIC = """
import importlib, pkgutil, sys, types

def everything():
    import voxplain
    for found in pkgutil.walk_packages(voxplain.__path__, "voxplain."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)

def call_each_name():
    import voxplain
    assert voxplain.__all__
    assert set(voxplain.__all__) <= set(dir(voxplain))
    for name in voxplain.__all__:
        public = getattr(voxplain, name)
        if isinstance(public, types.ModuleType):
            assert public.__name__ == f"voxplain.{name}", name
        elif not name.startswith("__"):
            for _ in "twice":
                try:
                    getattr(voxplain, name)(**{"no such argument": 0})
                except TypeError as error:
                    assert "not callable" not in str(error), f"voxplain.{name}: {error}"
        assert getattr(voxplain, name) is public, f"voxplain.{name} became something else"

for order in ([call_each_name, everything, call_each_name], [everything, call_each_name, call_each_name]):
    for name in [name for name in sys.modules if name.split(".")[0] == "voxplain"]:
        del sys.modules[name]
    for step in order:
        step()
"""


def test_public_names_stay_what_they_are_in_both_import_orders():
    run(PUBLIC)
