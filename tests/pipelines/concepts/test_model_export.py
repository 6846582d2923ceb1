"""A base with concepts in it as a model folder of its own."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.delta_tensors import lora_metadata, read_stored, stored
from pipelines.concepts.model_export import export_model
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.weight_deltas import Difference, LowRank, applied, check_fits
from pipelines.errors import ConceptError, ConfigError
from pipelines.generation import generate
from pipelines.models.families.registry import FAMILIES
from pipelines.models.loading import load
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
CONV = "unet.conv_in.weight"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def low_rank(shape, rank=2, scale=1.5, magnitude=False, seed=0):
    g = seeded(seed)
    down = torch.randn(rank, *shape[1:], generator=g)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g)
    return LowRank(down, up, scale, torch.rand(shape[0], generator=g) + 0.5 if magnitude else None)


def subject(base, token="<rex>", vectors=1, seed=0):
    """A concept of a word, a low-rank change and whole differences."""
    words = tuple(
        row.expand(vectors, -1) + 0.1 * torch.randn(vectors, row.shape[1], generator=seeded(seed))
        for row in single_rows(base, "fox")
    )
    query = tuple(base.unet.get_parameter(QUERY.removeprefix("unet.")).shape)
    conv = tuple(base.unet.get_parameter(CONV.removeprefix("unet.")).shape)
    changes = {
        QUERY: low_rank(query, seed=seed),
        CONV: Difference(0.1 * torch.randn(conv, generator=seeded(seed)).half()),
        TEXT: low_rank((32, 32), scale=0.3, seed=seed),
    }
    return Concept(ConceptCard(token=token, family=base.family.name, vectors=vectors, init="fox"), words, changes)


REQUEST = Request(prompt="a <rex> on a table", steps=3, seed=5, scheduler="ddim", guidance=Guidance(scale=4.0),
                  width=16, height=16)  # fmt: skip


@pytest.mark.parametrize(("make", "kind"), [(tiny.sd, StableDiffusionPipeline), (tiny.sdxl, StableDiffusionXLPipeline)])
@pytest.mark.parametrize("vectors", [1, 2])
def test_the_folder_draws_in_plain_diffusers_what_the_studio_draws(tmp_path, make, kind, vectors):
    base = make()
    before = tiny.snapshot(base)
    concept = subject(base, vectors=vectors)
    use = REQUEST.model_copy(update={"concepts": (ConceptUse(source="c", strength=0.8),)})
    ours = generate(base, use, concepts={"c": concept}).latents
    folder = export_model(base, [(concept, 0.8)], tmp_path / "model")
    assert tiny.same(before, base)
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(REQUEST.prompt, num_inference_steps=3, guidance_scale=4.0, width=16, height=16,
                      generator=seeded(5), output_type="latent").images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    # Plain pipelines write a word of several vectors out by themselves; here the concept's file would say so.
    prompt = REQUEST.prompt.replace("<rex>", "<rex> <rex>_1") if vectors == 2 else REQUEST.prompt
    again = generate(load(folder), REQUEST.model_copy(update={"prompt": prompt})).latents
    torch.testing.assert_close(ours, again, atol=1e-4, rtol=0)


def test_two_concepts_go_into_one_folder_without_a_word_of_any_library(tmp_path, capfd):
    base = tiny.sd()
    concepts = [subject(base, "<a>", seed=1), subject(base, "<b>", seed=2)]
    folder = export_model(base, [(one, 1.0) for one in concepts], tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    request = REQUEST.model_copy(update={"prompt": "a <a> and a <b>"})
    use = request.model_copy(update={"concepts": (ConceptUse(source="a"), ConceptUse(source="b"))})
    ours = generate(base, use, concepts=dict(zip("ab", concepts, strict=True))).latents
    torch.testing.assert_close(ours, generate(load(folder), request).latents, atol=1e-4, rtol=0)


def test_a_folder_that_is_there_is_not_touched_and_a_failure_leaves_nothing(tmp_path):
    base = tiny.sd()
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export_model(base, [(subject(base), 1.0)], tmp_path / "model")
    with pytest.raises(ConceptError, match="made for"):
        export_model(tiny.sdxl(), [(subject(base), 1.0)], tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_half_precision_halves_the_folder(tmp_path):
    base = tiny.sd()
    sizes = [
        sum(p.stat().st_size for p in export_model(base, [], tmp_path / str(half), half=half).rglob("*.safetensors"))
        for half in (False, True)
    ]
    assert 1.8 < sizes[0] / sizes[1] < 2.1


# -- changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3, 3)])
def test_a_low_rank_change_is_its_closed_form(strength, shape):
    weight, change = torch.randn(shape, generator=seeded(1)), low_rank(shape)
    product = torch.einsum("or,ri->oi", change.up.flatten(1), change.down.flatten(1)).reshape(shape)
    torch.testing.assert_close(change.changed(weight, strength), weight + strength * 1.5 * product)
    assert change.shape() == shape


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3, 3)])
def test_with_a_magnitude_the_rows_have_that_length(shape):
    weight, change = torch.randn(shape, generator=seeded(1)), low_rank(shape, magnitude=True)
    after = change.changed(weight, 1.0)
    torch.testing.assert_close(after.flatten(1).norm(dim=1), change.magnitude)
    torch.testing.assert_close(change.changed(weight, 0.0), weight)
    direction = low_rank(shape).changed(weight, 1.0).flatten(1)
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(after.flatten(1), direction), torch.ones(6), atol=1e-5, rtol=0
    )


def test_changes_nest_and_are_undone_in_turn_also_after_an_error():
    base = tiny.sd()
    before = tiny.snapshot(base)
    conv = base.unet.conv_in.weight
    change = {CONV: Difference(torch.ones_like(conv))}
    with pytest.raises(RuntimeError, match="on purpose"), applied(base, change), applied(base, change, 2.0):
        torch.testing.assert_close(base.unet.conv_in.weight.detach(), conv + 3)
        raise RuntimeError("on purpose")
    assert base.unet.conv_in.weight is conv and tiny.same(before, base)


def test_the_order_of_differences_does_not_matter():
    base = tiny.sd()
    one, other = subject(base, "<a>", seed=1), subject(base, "<b>", seed=2)
    request = REQUEST.model_copy(update={"prompt": "a <a> and a <b>"})
    latents = [
        generate(
            base, request.model_copy(update={"concepts": tuple(ConceptUse(source=name) for name in names)}),
            concepts={"a": one, "b": other},
        ).latents
        for names in ("ab", "ba")
    ]  # fmt: skip
    torch.testing.assert_close(*latents, atol=1e-4, rtol=0)


def test_what_is_stored_is_read_back():
    changes = {
        QUERY: low_rank((16, 16), scale=2.0),
        TEXT: low_rank((32, 32), rank=4, scale=0.25, magnitude=True),
        CONV: Difference(torch.randn(16, 4, 3, 3).half()),
    }
    read = read_stored(stored(changes), lora_metadata(changes))
    assert set(read) == set(changes)
    for key, change in changes.items():
        weight = torch.randn(change.shape(), generator=seeded(3))
        torch.testing.assert_close(read[key].changed(weight, 1.0), change.changed(weight, 1.0))


def test_without_metadata_alpha_is_the_rank_as_diffusers_assumes():
    read = read_stored(stored({QUERY: low_rank((16, 16), scale=2.0)}), {})
    assert read[QUERY].scale == 1.0


def test_changes_that_do_not_fit_name_the_weight_and_both_shapes():
    base = tiny.sd()
    with pytest.raises(
        ConceptError, match=r"unet\.conv_in\.weight as a weight of \(16, 4\), in tiny it is \(16, 4, 3, 3\)"
    ):
        check_fits(base, {CONV: Difference(torch.zeros(16, 4))}, "x")
    for key in ("unet.nowhere.weight", "vae.conv_in.weight", "text_encoder_2.encoder.x", "unet.", "unet.conv_in"):
        with pytest.raises(ConceptError, match="does not have"):
            check_fits(base, {key: Difference(torch.zeros(1))}, "x")


def test_the_digest_tells_changed_weights_apart():
    base = tiny.sd()
    one, other = subject(base, seed=1), subject(base, seed=2)
    same_rows = Concept(one.card, one.rows, other.changes)
    assert len({one.digest(), other.digest(), same_rows.digest()}) == 3
    assert subject(base, seed=1).digest() == one.digest()


def test_two_concepts_on_a_base_of_pocket_keep_their_base(tmp_path):
    """The fingerprint is that of the base as it was before the first concept, not with it inside."""
    from dataclasses import replace

    base = replace(tiny.sd(), family=FAMILIES["pocket"])
    mark = base.fingerprint()
    concepts = {name: subject(base, f"<{name}>", seed=i) for i, name in enumerate("ab")}
    marked = {
        name: replace(one, card=one.card.model_copy(update={"base_fingerprint": mark}))
        for name, one in concepts.items()
    }
    request = REQUEST.model_copy(update={"concepts": (ConceptUse(source="a"), ConceptUse(source="b"))})
    assert generate(base, request.model_copy(update={"prompt": "a <a> <b>"}), concepts=marked).pictures


def test_small_changes_survive_a_narrow_base():
    """Rounded to the nearest, four fifths of these would vanish; rounded by chance they arrive on average."""
    base = tiny.sd()
    torch.nn.Module.to(base.unet, torch.bfloat16)
    weight = base.unet.conv_in.weight
    small = torch.full_like(weight, 2e-5, dtype=torch.float32)
    moved = torch.zeros_like(small)
    with applied(base, {CONV: Difference(small)}):
        assert base.unet.conv_in.weight.dtype == torch.bfloat16
        moved = base.unet.conv_in.weight.detach().float() - weight.detach().float()
    assert 0.3 * 2e-5 < float(moved.mean()) < 3 * 2e-5
    with applied(base, {CONV: Difference(torch.zeros_like(small))}):
        assert torch.equal(base.unet.conv_in.weight, weight), "no change stays no change"


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"unet.lora_alpha": None}, "impossible alpha"),
        ({"unet.r": 0}, "impossible alpha"),
        ({"unet.lora_alpha": float("nan")}, "impossible alpha"),
        ({"unet.lora_alpha": -1}, "impossible alpha"),
        ({"unet.alpha_pattern": {"to_q": 0}}, "impossible alpha"),
    ],
)
def test_a_strength_that_cannot_be_told_is_refused(described, said):
    with pytest.raises(ConceptError, match=said):
        read_stored(stored({QUERY: low_rank((16, 16))}), described)


def test_rank_stabilised_files_keep_their_strength():
    described = {"unet.r": 2, "unet.lora_alpha": 3, "unet.use_rslora": True}
    read = read_stored(stored({QUERY: low_rank((16, 16))}), described)
    assert read[QUERY].scale == pytest.approx(3 / 2**0.5)


def test_broken_pairs_are_refused():
    tensors = stored({QUERY: low_rank((16, 16), magnitude=True)})
    down, up, magnitude = tensors
    for broken in (
        {down: tensors[down]},
        {up: tensors[up]},
        {down: tensors[down][:1], up: tensors[up]},
        {**tensors, magnitude: tensors[magnitude][:3]},
    ):
        with pytest.raises(ConceptError, match=r"broken|DoRA magnitudes"):
            read_stored(broken, {})
