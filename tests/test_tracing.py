from dataclasses import replace

import numpy as np
import pytest

import voxplain.recipes as recipes
from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import SingleKeyError
from voxplain.studies.explaining import explain
from voxplain.tracing import attached, choose_layers, trace

PROMPT = "large left effusion"
BOTH = pytest.mark.parametrize("grid", [(8, 12), (4, 8, 12)], ids=["image", "volume"])


def hooks(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.network.modules())


def traced(model, prompt=PROMPT, *, options=None, **generation):
    with trace(model, **(options or {})) as tracer:
        model.generate(prompt, **{"seed": 0, **generation})
    return tracer


# what it finds ----------------------------------------------------------------------------------------------------


@BOTH
def test_every_word_is_found_in_its_planted_box(grid):
    model = ToyAdapter(grid)
    attribution = traced(model).attribution()
    for word in PROMPT.split():
        values = attribution.word(word).values
        assert values[model.box(word)].min() > 2 * values[~model.box(word)].max()


@BOTH
def test_maps_and_padding_sum_to_one_at_every_cell(grid):
    attribution = traced(ToyAdapter(grid)).attribution()
    np.testing.assert_allclose(attribution.maps.sum(0) + attribution.padding, 1, atol=1e-5)
    assert attribution.padding.min() > 0
    assert attribution.maps.shape == (5, *grid)


def test_pieces_of_a_word_are_merged_by_characters():
    model = ToyAdapter()
    attribution = traced(model, "mild pneumothorax").attribution()
    box = model.box("pneumo") | model.box("##thorax")
    values = attribution.word("pneumothorax").values
    assert values[box].min() > 2 * values[~box].max()


# the image is left alone ------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("guidance", ["doubled", "two_passes"])
@pytest.mark.parametrize("options", [{}, {"per_head": True}, {"bins": 2}, {"window": (1, 2)}], ids=str)
def test_the_traced_image_equals_the_untraced_one(grid, guidance, options):
    model = ToyAdapter(grid, guidance=guidance)
    plain = model.generate(PROMPT, seed=7)
    with trace(model, **options):
        image = model.generate(PROMPT, seed=7).image
    assert np.array_equal(plain.image, image)


# guidance and batches ---------------------------------------------------------------------------------------------


def test_all_ways_of_guidance_give_the_same_planted_maps():
    runs = [
        traced(ToyAdapter(), guidance_scale=1.0),
        traced(ToyAdapter(guidance="doubled"), guidance_scale=3.0, negative_prompt="small nodule"),
        traced(ToyAdapter(guidance="two_passes"), guidance_scale=3.0, negative_prompt="small nodule"),
    ]
    maps = [run.attribution().maps for run in runs]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-6)
    np.testing.assert_allclose(maps[2], maps[0], atol=1e-6)


def test_a_negative_prompt_of_the_same_words_does_not_reach_a_map():
    model = ToyAdapter()
    attribution = traced(model, "mild", negative_prompt="effusion effusion").attribution()
    assert attribution.word("mild").values[model.box("mild")].min() > 0.5
    assert attribution.maps[1:-1, model.box("effusion")].max() < 0.1


@pytest.mark.parametrize("guidance", ["doubled", "two_passes"])
def test_several_prompts_and_samples_have_a_map_each_in_order(guidance):
    model, prompts = ToyAdapter(guidance=guidance), ["small nodule", "large left effusion"]
    made = traced(model, prompts, samples=2).attributions()
    assert [one.prompt.text for one in made] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    for one in made:
        for word in one.prompt.text.split():
            assert one.word(word).values[model.box(word)].min() > 0.5


def test_two_generations_in_one_block_are_kept_apart():
    model = ToyAdapter()
    with trace(model) as tracer:
        model.generate("small nodule", steps=2)
        model.generate("large left effusion", steps=3)
    assert [len(maps.maps) for maps in tracer.attributions()] == [4, 5]
    with pytest.raises(ValueError, match="2 samples were generated"):
        tracer.attribution()


def test_what_is_read_out_after_a_generation_is_no_part_of_it():
    model = ToyAdapter()
    alone = traced(model, steps=2).attribution()
    with trace(model) as tracer:
        explain(model, PROMPT, seed=0, steps=2)  # generates, and then reads null words at the kept states
    assert np.array_equal(tracer.attribution().maps, alone.maps)


# options ----------------------------------------------------------------------------------------------------------


def test_layers_heads_and_bins_are_kept_apart_on_request_and_average_to_the_whole():
    model = ToyAdapter(layers=3)
    whole = traced(model).attribution()
    for options in ({"per_layer": True}, {"per_head": True}, {"bins": 2}):
        tracer = traced(model, options=options)
        assert len(tracer.maps()[0].means) > 2
        np.testing.assert_allclose(tracer.attribution().maps, whole.maps, atol=1e-6)


def test_bins_split_the_steps_in_order():
    model = ToyAdapter(layers=1)
    maps = traced(model, steps=5, options={"bins": 2}).maps()[0]
    assert {key.bin: count for key, count in maps.counts.items()} == {0: 2 * 3, 1: 2 * 2}  # two heads


def test_a_window_keeps_its_steps_only():
    model = ToyAdapter(layers=1)
    maps = traced(model, steps=6, options={"window": (2, 4)}).maps()[0]
    assert list(maps.counts.values()) == [2 * 3]


def test_chosen_layers_are_the_only_ones_recorded():
    model = ToyAdapter(layers=5)
    tracer = traced(model, options={"layers": ["layers.1.*", "layers.3.attn2"], "per_layer": True})
    assert {key.layer for key in tracer.maps()[0].means} == {"layers.1.attn2", "layers.3.attn2"}
    assert tracer.attribution().geometry.shape == (2, 4, 6)


def test_a_recipe_that_leaves_the_layers_to_the_model_takes_those_it_names():
    model = ToyAdapter(layers=4)
    tracer = traced(model, options={"recipe": "selected"})
    assert tracer.layers == model.localizing_layers
    assert tracer.attribution().recipe.layers == model.localizing_layers
    model.localizing_layers = ()
    with pytest.raises(ValueError, match="nobody has measured"), trace(model, "selected"):
        pass


def test_a_recipe_decides_what_is_accumulated():
    by_head = replace(recipes.get("mean"), name="heads", accumulate=frozenset({"layer", "head"}))
    maps = traced(ToyAdapter(), options={"recipe": by_head}).maps()[0]
    assert {(key.layer, key.head) for key in maps.means} == {
        ("layers.0.attn2", 0),
        ("layers.0.attn2", 1),
        ("layers.1.attn2", 0),
    }


def test_memory_does_not_depend_on_the_number_of_steps():
    model = ToyAdapter()
    few, many = traced(model, steps=3), traced(model, steps=30)
    assert few.nbytes == many.nbytes
    rows, cells = 5, 4 * 8 * 12
    assert few.nbytes <= rows * cells * 4 + 64_000


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bins": 0}, "bins = 0"),
        ({"window": (3, 1)}, r"window = \(3, 1\)"),
        ({"recipe": "effect"}, "does not read attention"),
        ({"recipe": "nonsense"}, "unknown recipe"),
        ({"layers": ["nowhere"]}, "no layer of toy fits 'nowhere'"),
        ({"layers": []}, "no layers to record"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_runs(options, complaint):
    model = ToyAdapter()
    with pytest.raises(ValueError, match=complaint), trace(model, **options):
        pytest.fail("the block was entered")
    assert hooks(model) == 0


@pytest.mark.parametrize("options", [{"bins": 9}, {"window": (0, 4)}], ids=str)
def test_options_that_the_run_is_too_short_for_are_refused(options):
    model = ToyAdapter()
    with pytest.raises(ValueError, match="4 steps"), trace(model, **options):
        model.generate(PROMPT, steps=4)


# nothing is left behind -------------------------------------------------------------------------------------------


def test_no_hook_survives_success():
    model = ToyAdapter(layers=5)
    with trace(model):
        assert hooks(model) > 0
        model.generate(PROMPT)
    assert hooks(model) == 0
    assert model._watchers == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in a step", "in a layer", "after the run"])
def test_no_hook_survives_an_exception_or_an_interrupt(error, where):
    model = ToyAdapter(layers=5)

    def stop(*_):
        raise error

    with pytest.raises(error), trace(model):
        if where == "in a layer":
            with attached(model, stop):
                model.generate(PROMPT)
        model.generate(PROMPT, progress=stop if where == "in a step" else None)
        stop()
    assert hooks(model) == 0
    assert model._watchers == []


def test_no_hook_survives_when_the_third_of_five_layers_cannot_be_attached():
    class Broken(ToyAdapter):
        attached = 0

        def observe(self, layer, listener):
            if layer == "layers.2.attn2":
                self.attached = hooks(self)
                raise RuntimeError("the third layer is broken")
            return super().observe(layer, listener)

    model = Broken(layers=5)
    with pytest.raises(RuntimeError, match="third layer"), trace(model):
        pytest.fail("the block was entered")
    assert model.attached > 0, "the first two layers were attached when the third failed"
    assert hooks(model) == 0
    assert model._watchers == []


def test_traces_can_be_nested_and_each_removes_its_own():
    model = ToyAdapter()
    with trace(model) as outer:
        with trace(model) as inner:
            model.generate(PROMPT)
        assert hooks(model) > 0
    assert hooks(model) == 0
    assert np.array_equal(outer.attribution().maps, inner.attribution().maps)


# incomplete recordings --------------------------------------------------------------------------------------------


def test_an_empty_trace_is_an_error_with_its_cure():
    model = ToyAdapter()
    with trace(model) as tracer:
        pass
    model.generate(PROMPT)
    with pytest.raises(ValueError, match="nothing was recorded: .* run the model in it"):
        tracer.attribution()


def test_an_interrupted_generation_has_no_attribution():
    model = ToyAdapter()

    def stop(done, steps):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trace(model) as tracer:
        model.generate(PROMPT, steps=8, progress=stop)
    with pytest.raises(ValueError, match="only 3 of 8 steps"):
        tracer.attribution()


def test_a_layer_that_was_heard_less_than_once_a_step_is_named():
    class Deaf(ToyAdapter):
        def observe(self, layer, listener):
            return super().observe(
                layer, lambda call: listener(call) if (call.step, call.layer[7]) != (2, "1") else None
            )

    tracer = traced(Deaf(layers=3))
    with pytest.raises(ValueError, match=r"layers\.1\.attn2 was recorded 3 times in 4 steps"):
        tracer.maps()


def test_a_model_that_runs_unannounced_is_refused():
    model = ToyAdapter()
    context = model.encode_prompt(model.tokenize(PROMPT))
    noise = np.zeros((1, *model.latent_shape), np.float32)
    latent = model.encode_image(np.zeros((1, *model.geometry.shape), np.float32))
    assert latent.shape == noise.shape
    with pytest.raises(RuntimeError, match="not announced"), trace(model):
        model.network(latent, context)
    with pytest.raises(ValueError, match="outside of a generation; use `attached`"), trace(model):
        model.predict(latent, 0.0, context)


def test_a_single_text_key_is_refused_and_effect_is_named():
    model = ToyAdapter(single_key=True)
    with pytest.raises(SingleKeyError, match="recipe 'effect'"), trace(model):
        model.generate(PROMPT)
    assert hooks(model) == 0


def test_layers_are_chosen_in_the_order_of_the_model():
    model = ToyAdapter(layers=3)
    assert choose_layers(model, ["layers.2*", "layers.0*"]) == ("layers.0.attn2", "layers.2.attn2")
    assert choose_layers(model, None) == model.layers
