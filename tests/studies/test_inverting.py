"""Inversion on models whose noise is known, so that the way up, the way back and their error are known too."""

import math

import numpy as np
import pytest
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from medsyn_models import small_model
from models.conftest import build_tiny
from tiny_pipelines import scheduler, sd, sd2
from tiny_transformers import sana

from voxplain.adapters import as_adapter
from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import AttentionCall
from voxplain.maps import Sample
from voxplain.studies import grounding
from voxplain.studies.inverting import invert
from voxplain.tracing import attached

TEXT = "left nodule"


class Affine(ToyAdapter):
    """Predicts `slope` of what it sees and a tenth, whatever the text: of the kind it is told."""

    def __init__(self, grid, kind="epsilon", slope=0.3):
        super().__init__(grid)
        self.prediction, self.slope, self.fed = kind, slope, []

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        super().predict(latent, timestep, context, rows=rows, step=step)
        self.fed.append((timestep, len(latent)))
        return self.slope * latent + 0.1


class Straight(Affine):
    """Flow matching: a straight line between latent and noise."""

    def add_noise(self, latent, noise, timestep):
        return (1 - timestep / 1000) * latent + timestep / 1000 * noise


@pytest.fixture(params=((8, 24), (4, 8, 12)), ids=["2D", "3D"])
def grid(request):
    return request.param


def image(adapter):
    values = np.random.default_rng(0).normal(-500, 100, (1, *adapter.geometry.shape))
    return Sample(values.astype(np.float32), adapter.geometry, "")


def inverted(adapter, steps=5, used=5):
    return invert(adapter, image(adapter), adapter.tokenize(TEXT), steps=steps, used=used)


def test_where_the_noise_does_not_depend_on_the_state_the_way_is_exact_and_leads_back(grid):
    adapter = Affine(grid, slope=0.0)
    made = inverted(adapter)
    latent = adapter.encode_image(image(adapter).image)[0].numpy()
    assert made.states.timesteps == adapter.timesteps(5)
    for state, level in zip(made.states.latents, made.states.timesteps, strict=True):
        signal = 1 - level / 1000
        np.testing.assert_allclose(state, math.sqrt(signal) * latent + math.sqrt(1 - signal) * 0.1, atol=1e-5)
    assert made.round_trip["latent"] < 1e-5
    assert made.round_trip["image"] < 0.01  # HU
    assert made.round_trip["unit"] == "HU"


@pytest.mark.parametrize("kind", ["epsilon", "v", "sample"])
def test_each_kind_of_prediction_gives_the_documented_step(grid, kind):
    adapter = Affine(grid, kind)
    made = inverted(adapter, steps=3, used=3)  # levels 990, 495, 0: the last one is the image
    z = adapter.encode_image(image(adapter).image)[0].numpy().astype(float)
    np.testing.assert_allclose(made.states.latents[2], z, atol=1e-6)
    before = 1.0
    for number, level in ((1, 495.0), (0, 990.0)):
        signal, spread, predicted = math.sqrt(1 - level / 1000), math.sqrt(level / 1000), 0.3 * z + 0.1
        noise = {
            "epsilon": predicted,
            "v": spread * z + signal * predicted,
            "sample": (z - signal * predicted) / spread,
        }[kind]
        z = signal * (z - math.sqrt(1 - before**2) * noise) / before + spread * noise
        np.testing.assert_allclose(made.states.latents[number], z, rtol=1e-4, atol=1e-4)
        before = signal


def test_the_error_is_that_of_going_up_and_down_and_of_the_autoencoder_apart(grid):
    adapter = Affine(grid)
    made, sample = inverted(adapter), image(adapter)
    latent = adapter.encode_image(sample.image)
    assert made.round_trip["autoencoder"] == pytest.approx(np.abs(adapter.decode(latent)[0] - sample.image).mean())
    assert 1e-4 < made.round_trip["latent"] < 1
    assert made.round_trip["image"] > 0.01
    finer = inverted(adapter, steps=50, used=50)
    assert finer.round_trip["latent"] < made.round_trip["latent"] / 2


def test_only_the_levels_that_are_used_are_climbed_and_one_row_a_pass(grid):
    adapter = Affine(grid)
    made = inverted(adapter, steps=5, used=3)
    assert made.states.steps == (2, 3, 4)
    assert adapter.fed == [(247.5, 1), (495.0, 1), (495.0, 1), (247.5, 1)]  # nothing is to be done at level 0


def test_the_same_maps_whatever_the_seed_and_the_listeners_hear_the_reading_only(grid):
    adapter = Affine(grid)
    calls: list[AttentionCall] = []
    options = {"profile": "invert", "steps": 4, "used": 3}
    with attached(adapter, calls.append, adapter.layers[:1]):
        first = grounding.ground(adapter, image(adapter), TEXT, seed=1, **options)
    second = grounding.ground(adapter, image(adapter), TEXT, seed=2, **options)
    assert len(calls) == 3
    assert np.array_equal(first.maps, second.maps)
    assert first.provenance["readout"] == "invert"
    assert set(first.provenance["round_trip"]) == {"latent", "image", "autoencoder", "unit"}
    assert "seed" not in first.provenance


def test_models_that_ddim_does_not_fit_are_refused_by_name(grid):
    silent = ToyAdapter(grid)
    silent.prediction = None
    for adapter, complaint in (
        (silent, "toy cannot be inverted, .*: its denoiser predicts nothing that it names"),
        (Affine(grid, "flow_prediction"), "toy cannot be inverted, .*: its denoiser predicts flow_prediction"),
        (Straight(grid), "toy cannot be inverted, .*: at timestep .* mixes .* no schedule of DDIM"),
    ):
        with pytest.raises(ValueError, match=complaint):
            grounding.ground(adapter, image(adapter), TEXT, profile="invert")


def test_a_network_that_fails_says_where(grid):
    adapter = Affine(grid, slope=math.nan)
    with pytest.raises(FloatingPointError, match="toy: the inversion is not finite at timestep 247.5"):
        inverted(adapter)


FAMILIES = {
    "MONAI 2D": (lambda: build_tiny(2), "left pleural effusion", "v"),
    "MONAI 3D": (lambda: build_tiny(3), "left pleural effusion", "v"),
    "MedSyn": (small_model, "left effusion", "sample"),
    "diffusers": (sd, "left effusion", "epsilon"),
    "diffusers, v": (sd2, "left effusion", "v"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_whose_noise_keeps_the_variance_is_inverted_by_what_its_denoiser_predicts(family):
    build, text, kind = FAMILIES[family]
    adapter = as_adapter(build())
    assert adapter.prediction == kind
    read = adapter.generate(text, steps=2)
    made = grounding.ground(adapter, read, text, profile="invert", steps=4, used=2)
    assert np.isfinite(made.maps).all()
    assert 0 < made.provenance["round_trip"]["latent"] < math.inf


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: sd(levels=scheduler(EulerDiscreteScheduler)), "no schedule of DDIM"),
        (sana, "predicts (flow_prediction|nothing that it names)"),
    ],
    ids=["sigmas", "flow"],
)
def test_pipelines_of_other_noise_are_refused(build, complaint):
    adapter = as_adapter(build())
    values = np.zeros((3, *adapter.geometry.shape), np.float32)
    with pytest.raises(ValueError, match=f"cannot be inverted, .*: .*{complaint}"):
        grounding.ground(adapter, Sample(values, adapter.geometry, ""), "left effusion", profile="invert")
