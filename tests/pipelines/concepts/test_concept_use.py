"""Concepts at work: strengths, which base they fit, and parity with embeddings of other programs in plain diffusers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pipelines import Concept, ConceptCard, ConceptUse, Guidance, Request, generate
from pipelines.concepts.card import read_header
from pipelines.concepts.token_embeddings import embed_ids, single_rows
from pipelines.errors import ConceptError
from pipelines.models.families.registry import FAMILIES
from pipelines.models.loading import from_pipeline
from tests import tiny


@pytest.fixture(scope="module", params=[tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def base(request):
    return request.param()


def learned(base, vectors=1, **card):
    generator = torch.Generator().manual_seed(vectors)
    rows = tuple(torch.randn(vectors, e.config.hidden_size, generator=generator) for e in base.text_encoders)
    return Concept(ConceptCard(**({"token": "<x>", "family": base.family.name, "vectors": vectors} | card)), rows)


def attached_rows(base, concept, strength):
    with concept.attach(base, strength) as taught:
        ids = taught.tokenizers[0].convert_tokens_to_ids(["<x>", *(f"<x>_{i}" for i in range(1, concept.card.vectors))])
        return [embed_ids(encoder, ids) for encoder in taught.text_encoders]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("vectors", [1, 3])
def test_strength_moves_each_vector_on_the_line_from_its_class_word(base, strength, vectors):
    concept = learned(base, vectors, init="fox")
    for row, start, end in zip(
        attached_rows(base, concept, strength), single_rows(base, "fox"), concept.rows, strict=True
    ):
        torch.testing.assert_close(row, (1 - strength) * start + strength * end)


def test_without_a_class_word_strength_zero_is_the_average_word(base):
    for row, encoder in zip(attached_rows(base, learned(base), 0.0), base.text_encoders, strict=True):
        average = encoder.get_input_embeddings().weight.double().mean(0, keepdim=True)
        torch.testing.assert_close(row.double(), average, atol=1e-6, rtol=1e-4)


def test_full_strength_is_what_was_learned_to_the_last_bit(base):
    concept = learned(base, 2, init="fox")
    assert all(torch.equal(a, b) for a, b in zip(attached_rows(base, concept, 1.0), concept.rows, strict=True))


def test_a_concept_of_an_unknown_family_works_where_its_numbers_fit(base):
    with learned(base, family="").attach(base) as taught:
        assert len(taught.tokenizers[0]) == len(base.tokenizers[0]) + 1


@pytest.mark.parametrize("width", [16, 64, 768])
def test_a_concept_whose_numbers_do_not_fit_names_both_sides(base, width):
    concept = Concept(ConceptCard(token="<x>", base="somewhere"), (torch.zeros(1, width),))
    with (
        pytest.raises(ConceptError, match=rf"for somewhere.*{base.name}.*{base.family.name}"),
        concept.attach(base),
    ):
        pass


def test_fine_tunes_of_a_family_take_its_concepts_and_pocket_only_its_own():
    base = tiny.sd()
    other = learned(base, base_fingerprint="0123456789abcdef")
    other.check_fits(base)
    as_pocket = replace(base, family=FAMILIES["pocket"], identity="fedcba9876543210")
    with pytest.raises(ConceptError, match="other weights of pocket"):
        replace(other, card=other.card.model_copy(update={"family": "pocket"})).check_fits(as_pocket)
    for fingerprint in ("", "fedcba9876543210"):
        learned(base, family="pocket", base_fingerprint=fingerprint).check_fits(as_pocket)


def test_two_concepts_of_pocket_work_together_on_the_base_they_were_loaded_for():
    base = replace(tiny.sd(), family=FAMILIES["pocket"], identity="fedcba9876543210")
    first, second = (learned(base, token=token, base_fingerprint=base.identity) for token in ("<x>", "<y>"))
    with first.attach(base) as one, second.attach(one) as both:
        assert len(both.tokenizers[0]) == len(base.tokenizers[0]) + 2


def test_saving_what_was_loaded_gives_the_same_header_and_numbers(base, tmp_path):
    first = learned(base, 2, created="2026-01-02T03:04:05+00:00").save(tmp_path / "a.safetensors")
    second = Concept.load(first).save(tmp_path / "b.safetensors")
    # Byte for byte they may differ: safetensors writes the metadata in no fixed order.
    assert read_header(first) == read_header(second)
    assert all(torch.equal(a, b) for a, b in zip(Concept.load(second).rows, Concept.load(first).rows, strict=True))


def test_scores_are_added_to_those_that_are_there(base):
    scored = learned(base, scores={"a": 1.0, "b": 2.0}).with_scores({"b": 3.0, "c": 4.0})
    assert scored.card.scores == {"a": 1.0, "b": 3.0, "c": 4.0}


def test_the_digest_tells_words_and_every_number_apart(base):
    concept = learned(base, 2)
    changed = [row.clone() for row in concept.rows]
    changed[-1][1, 3] = torch.nextafter(changed[-1][1, 3], torch.tensor(9.0))
    renamed = replace(concept, card=concept.card.model_copy(update={"token": "<y>"}))
    others = [replace(concept, rows=tuple(changed)), renamed, learned(base, 1)]
    assert len({concept.digest(), *(other.digest() for other in others)}) == 4


@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 32)])
def test_an_embedding_of_another_program_draws_what_it_draws_in_plain_diffusers(tmp_path, shape):
    pipeline = tiny.sd_pipeline()
    base = tiny.frozen(from_pipeline(tiny.sd_pipeline(), "tiny"))
    path = tmp_path / "cat.safetensors"
    save_file({"<cat-toy>": torch.randn(shape, generator=torch.Generator().manual_seed(0))}, path)
    request = Request(
        prompt="a <cat-toy> on a table",
        concepts=(ConceptUse(source=str(path)),),
        scheduler="ddim",
        steps=2,
        width=16,
        height=16,
        seed=1,
        guidance=Guidance(scale=4.0),
    )
    ours = generate(base, request).latents
    pipeline.load_textual_inversion(str(path))
    theirs = pipeline(
        request.prompt,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        width=16,
        height=16,
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert not torch.allclose(ours, generate(base, request.model_copy(update={"concepts": ()})).latents, atol=1e-3)


def test_a_renamed_automatic1111_embedding_is_used_by_the_name_of_its_file(tmp_path):
    base = tiny.sd()
    rows = single_rows(base, "fox")[0]
    save_file({"emb_params": rows}, tmp_path / "renamed-fox.safetensors")
    concept = Concept.load(tmp_path / "renamed-fox.safetensors")
    fields = {"steps": 1, "width": 16, "height": 16}
    uses = (ConceptUse(source="it"),)
    taught = generate(base, Request(prompt="a renamed-fox", concepts=uses, **fields), concepts={"it": concept})
    assert torch.equal(taught.latents, generate(base, Request(prompt="a fox", **fields)).latents)
