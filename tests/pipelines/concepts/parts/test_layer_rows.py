"""Rows of a word for each cross-attention layer: each layer reads its own, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.card import ConceptCard, read_card
from pipelines.concepts.concept import Concept
from pipelines.concepts.model_export import export_model
from pipelines.concepts.parts.layer_rows import LayerRows, cross_attention, layered_word
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.writers import export_as
from pipelines.errors import ConceptError
from pipelines.generation import generate
from pipelines.models.families.clip import encode_prompts
from pipelines.request.request import Box, ConceptUse, Guidance, Request
from studio.library import concepts as library
from studio.library.import_export import rename_concept
from tests import tiny

VECTORS = 2
PROMPT = "a photo of <x> on a table"


@pytest.fixture(params=[tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def base(request):
    return request.param()


def learned(base, seed=1, token="<x>"):
    generator = torch.Generator().manual_seed(seed)
    layers = len(cross_attention(base))
    rows = tuple(
        start + 0.3 * torch.randn(layers, VECTORS, start.shape[-1], generator=generator)
        for start in single_rows(base, "fox")
    )
    card = ConceptCard(token=token, method="p-plus", family=base.family.name, vectors=VECTORS, init="fox")
    return Concept(card, parts=[LayerRows(rows)])


def drawn(base, *concepts, prompt=PROMPT, strength=1.0, **more):
    uses = tuple(ConceptUse(source=one.token, strength=strength) for one in concepts)
    request = Request(prompt=prompt, steps=2, concepts=uses, width=16, height=16, **more)
    return generate(base, request, concepts={one.token: one for one in concepts}).latents


def read_by_layers(base, prompt):
    """The context that each cross-attention layer reads in one call of the UNet."""
    seen = []

    def look(module, args, kwargs):
        seen.append((module, kwargs["encoder_hidden_states"]))

    layers = cross_attention(base)
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    (encoded,) = encode_prompts(base, [prompt])
    size = int(base.unet.config["sample_size"])
    more = {}
    if encoded.pooled is not None:
        more["added_cond_kwargs"] = {"text_embeds": encoded.pooled, "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        base.unet(torch.zeros(1, 4, size, size), 1, encoder_hidden_states=encoded.context, **more)
    for handle in handles:
        handle.remove()
    order = {id(layer): place for place, layer in enumerate(layers)}
    return dict(sorted((order[id(module)], context) for module, context in seen))


def test_each_layer_reads_the_encoding_of_its_own_rows(base):
    concept = learned(base)
    (part,) = concept.parts
    with concept.attach(base) as taught:
        got = read_by_layers(taught, PROMPT)
    assert len(got) == len(cross_attention(base)) > 2
    for place, context in got.items():
        alone = Concept(concept.card, tuple(rows[place] for rows in part.rows))
        with alone.attach(base) as other:
            torch.testing.assert_close(context, encode_prompts(other, [PROMPT])[0].context)


def test_equal_rows_in_all_layers_are_an_ordinary_word(base):
    rows = tuple(row.expand(VECTORS, -1) + 0.2 for row in single_rows(base, "fox"))
    layers = len(cross_attention(base))
    card = ConceptCard(token="<x>", family=base.family.name, vectors=VECTORS, init="fox")
    everywhere = Concept(card, parts=[LayerRows(tuple(row.expand(layers, -1, -1) for row in rows))])
    for prompt in (PROMPT, "a (<x>:1.4) beside a [cat]", f"{'a cat and ' * 40}<x>"):
        ordinary = drawn(base, Concept(card, rows), prompt=prompt)
        torch.testing.assert_close(drawn(base, everywhere, prompt=prompt), ordinary, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_goes_with_it(skip):
    base = tiny.sd()
    rows = tuple(row.expand(VECTORS, -1) + 0.2 for row in single_rows(base, "fox"))
    layers = len(cross_attention(base))
    card = ConceptCard(token="<x>", family=base.family.name, vectors=VECTORS, init="fox")
    everywhere = Concept(card, parts=[LayerRows(tuple(row.expand(layers, -1, -1) for row in rows))])
    ordinary = drawn(base, Concept(card, rows), clip_skip=skip)
    torch.testing.assert_close(drawn(base, everywhere, clip_skip=skip), ordinary, atol=2e-5, rtol=1e-4)


def test_prompts_that_do_not_say_it_are_drawn_as_before(base):
    torch.testing.assert_close(
        drawn(base, learned(base), prompt="a cat"), drawn(base, prompt="a cat"), atol=1e-6, rtol=1e-5
    )


def test_the_base_is_bit_equal_afterwards_and_no_layer_keeps_a_hook(base):
    before, untaught = tiny.snapshot(base), drawn(base)
    assert not torch.equal(drawn(base, learned(base)), untaught)
    assert tiny.same(before, base) and torch.equal(drawn(base), untaught)
    assert not any(layer._forward_pre_hooks for layer in cross_attention(base))
    with pytest.raises(RuntimeError, match="on purpose"), learned(base).attach(base):
        raise RuntimeError("on purpose")
    assert not any(layer._forward_pre_hooks for layer in cross_attention(base))


def test_two_words_of_layers_go_together_in_any_order(base):
    one, other = learned(base), learned(base, 2, "<y>")
    prompt = "a <x> beside a <y>"
    there, back = drawn(base, one, other, prompt=prompt), drawn(base, other, one, prompt=prompt)
    torch.testing.assert_close(there, back, atol=2e-5, rtol=1e-4)
    apart = [drawn(base, one, prompt="a <x>"), drawn(base, one, other, prompt="a <x>")]
    torch.testing.assert_close(*apart, atol=2e-5, rtol=1e-4)


def test_it_goes_with_an_ordinary_word_and_with_boxes():
    base = tiny.sd()
    word = Concept(
        ConceptCard(token="<y>", family=base.family.name, vectors=1, init="cat"),
        tuple(row + 0.5 for row in single_rows(base, "cat")),
    )
    boxes = (Box(phrase="a <x>", box=(0, 0, 0.5, 1)), Box(phrase="a <y>", box=(0.5, 0, 1, 1)))
    got = drawn(base, learned(base), word, prompt="a <x> and a <y>", boxes=boxes)
    assert bool(got.isfinite().all())
    assert not torch.equal(got, drawn(base, learned(base), word, prompt="a <x> and a <y>"))


def test_strength_0_is_the_word_it_started_from(base):
    torch.testing.assert_close(
        drawn(base, learned(base), strength=0.0, prompt="a <x>", guidance=Guidance(scale=2.0)),
        drawn(
            base,
            Concept(
                ConceptCard(token="<x>", family=base.family.name, vectors=VECTORS, init="fox"),
                tuple(row.expand(VECTORS, -1) for row in single_rows(base, "fox")),
            ),
            prompt="a <x>",
            guidance=Guidance(scale=2.0),
        ),
        atol=2e-5,
        rtol=1e-4,
    )


def test_a_file_of_it_says_its_vectors_without_torch_and_loads_bit_equal(base, tmp_path):
    concept = learned(base)
    path = concept.save(tmp_path / "x.safetensors")
    assert read_card(path).vectors == VECTORS
    loaded = Concept.load(path)
    pairs = zip(concept.tensors().items(), loaded.tensors().items(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
    assert loaded.digest() == concept.digest() and torch.equal(drawn(base, loaded), drawn(base, concept))


def test_another_number_of_layers_is_refused_with_both():
    base, rows = tiny.sd(), learned(tiny.sd()).parts[0].rows
    fewer = Concept(ConceptCard(token="<x>", family="sd1", vectors=VECTORS), parts=[LayerRows((rows[0][:2],))])
    there = len(cross_attention(base))
    with pytest.raises(ConceptError, match=rf"has rows for 2 cross-attention layers, and .* has {there}\."):
        drawn(base, fewer)


def test_rows_of_no_layers_are_refused(tmp_path):
    with pytest.raises(ConceptError, match="have the shapes"):
        LayerRows.read({"layer_rows.0": torch.zeros(2, 32)}, {})


@pytest.mark.parametrize("dialect", ["a1111", "diffusers", "peft"])
def test_other_programs_have_no_layout_for_it_and_the_next_step_is_said(dialect, tmp_path):
    base = tiny.sd()
    with pytest.raises(ConceptError, match=rf"<x> consists of layer rows, for which {dialect} has no layout") as error:
        export_as(learned(base), tmp_path, dialect)
    assert "textual-inversion" in error.value.hint and not list(tmp_path.iterdir())
    with pytest.raises(ConceptError, match="a model folder of diffusers has no layout"):
        export_model(base, [(learned(base), 1.0)], tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_gradients_reach_the_rows_of_every_layer(base):
    starts = [row.expand(len(cross_attention(base)), VECTORS, -1) for row in single_rows(base, "fox")]
    with layered_word(base, "<x>", starts) as words:
        (encoded,) = encode_prompts(words.components, ["a <x>"])
        encoded.context.square().sum().backward()
    assert all((row.grad.abs().sum(1) > 0).all() for row in words.rows)


def test_the_library_knows_its_width_and_that_no_other_program_reads_it(base, tmp_path):
    path = learned(base).save(tmp_path / "x.safetensors")
    assert library.width(path) == base.text_encoders[0].config.hidden_size
    assert library.elsewhere(path) == "none: other programs have no layout for its layer rows"
    new = rename_concept(path, "<z>")
    assert Concept.load(new).token == "<z>" and not path.exists()
    assert torch.equal(drawn(base, Concept.load(new), prompt="a <z>"), drawn(base, learned(base), prompt="a <x>"))
