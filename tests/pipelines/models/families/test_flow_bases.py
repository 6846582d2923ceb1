"""Bases of rectified flow from folders: read as what they are, refused in a sentence, and asked for what they can."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from pipelines.concepts.compatibility import base_files
from pipelines.conditions.inpaint import Inpainting
from pipelines.conditions.preview import Watch
from pipelines.errors import ModelError, RequestError, StudioError
from pipelines.events import Note, Preview
from pipelines.generation import generate
from pipelines.models.families.known import KNOWN
from pipelines.models.families.registry import FAMILIES as LISTED
from pipelines.models.latent_colours import latent_colours
from pipelines.models.loading import load, set_attention
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import Box, ExamplePair, Guidance, InContext, Request
from tests import tiny, tiny_flows

FAMILIES = list(tiny_flows.PIPELINES)


def request(**fields):
    return Request(**({"prompt": "a fox", "width": 32, "height": 32, "steps": 2} | fields))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, written once."""
    kept = {}

    def of(family):
        if family not in kept:
            kept[family] = tmp_path_factory.mktemp(family)
            tiny_flows.pipeline(family).save_pretrained(kept[family])
        return kept[family]

    return of


def test_every_family_is_known_by_name_and_by_what_it_does():
    assert set(LISTED) == set(KNOWN)
    assert all(family.title == KNOWN[name].title for name, family in LISTED.items())
    assert {one.parts["transformer"][0] for one in KNOWN.values() if "transformer" in one.parts} == {
        type(tiny_flows.pipeline(family).transformer).__name__ for family in FAMILIES
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_read_as_what_it_is_and_draws_the_same(folders, family):
    base, loaded = tiny_flows.base(family), load(folders(family))
    assert loaded.family.name == family == base_files(str(folders(family))).family
    assert loaded.fingerprint() == base.fingerprint() != tiny_flows.base(family, seed=1).fingerprint()
    assert {key for key in base.options if "select" in key or key == "is_distilled"} <= set(loaded.options)
    assert all(not p.requires_grad for module in loaded.modules() for p in module.parameters())
    seen = [generate(one, request(guidance=Guidance(scale=2.0))).latents for one in (base, loaded)]
    torch.testing.assert_close(*seen, atol=1e-5, rtol=0)


def test_large_parts_are_read_as_they_are_stored_and_used_as_asked(folders, tmp_path):
    shutil.copytree(folders("z-image"), tmp_path / "half")
    half = tiny_flows.pipeline("z-image")
    for part in ("transformer", "text_encoder"):
        torch.nn.Module.to(getattr(half, part), torch.bfloat16).save_pretrained(tmp_path / "half" / part)
    base = load(tmp_path / "half")
    assert base.dtype == torch.float32 and base.text_encoders[0].dtype == torch.float32
    assert load(tmp_path / "half", dtype=torch.bfloat16).fingerprint() == base.fingerprint()
    made = generate(load(tmp_path / "half", dtype=torch.bfloat16), request()).latents
    assert torch.isfinite(made).all()


def changed(folder, target, **entries):
    """A copy of a folder whose index says something else."""
    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text())
    index = {key: value for key, value in (index | entries).items() if value != "gone"}
    (target / "model_index.json").write_text(json.dumps(index))
    return target


def test_an_unknown_base_is_named_with_what_is_known(folders, tmp_path):
    folder = changed(folders("z-image"), tmp_path / "x", transformer=["diffusers", "PixArtTransformer2DModel"])
    with pytest.raises(ModelError, match=r"is a PixArtTransformer2DModel, which is not supported\. .*Z-Image.*Krea 2"):
        load(folder)
    assert base_files(str(folder)).family == ""


@pytest.mark.parametrize(
    ("family", "part"), [("z-image", "text_encoder"), ("flux1", "text_encoder_2"), ("sd3", "text_encoder_2")]
)
def test_a_missing_text_encoder_is_named(folders, tmp_path, family, part):
    title = KNOWN[family].title.replace(".", "[.]")
    both = (part, part.replace("text_encoder", "tokenizer"))
    folder = changed(folders(family), tmp_path / "a", **dict.fromkeys(both, "gone"))
    with pytest.raises(ModelError, match=rf"has no {part}, .*Use a complete {title} folder"):
        load(folder)
    shutil.copytree(folders(family), tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / part)
    with pytest.raises(ModelError, match=rf"The {part} of .* cannot be read"):
        load(tmp_path / "b")
    folder = changed(folders(family), tmp_path / "c", **{part: ["transformers", "BertModel"]})
    with pytest.raises(ModelError, match=rf"The {part} of .* is a BertModel, .*it would have to be"):
        load(folder)


def test_stable_diffusion_3_is_read_without_t5(folders, tmp_path):
    folder = changed(folders("sd3"), tmp_path / "x", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert len(load(folder).text_encoders) == 2


@pytest.mark.parametrize("family", ["z-image", "flux2"])
def test_a_tokenizer_without_its_chat_template_is_refused(folders, tmp_path, family):
    shutil.copytree(folders(family), tmp_path / "x")
    place = tmp_path / "x" / "tokenizer"
    (place / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no chat template"):
        load(tmp_path / "x")


def test_eager_attention_is_refused_for_transformers():
    base = tiny_flows.base("z-image")
    with pytest.raises(ModelError, match="--attention sdpa"):
        set_attention(base.denoiser, "eager")
    set_attention(base.denoiser, "sdpa")


# -- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_must_divide_and_the_next_is_offered(family):
    base = tiny_flows.base(family)
    assert base.multiple == 4, "two latents of two pixels each"
    with pytest.raises(RequestError, match=rf"The width 34 is no multiple of 4, which tiny-{family} needs\. Use 32"):
        generate(base, request(width=34))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scheduler": "dpm++2m"}, "sampler dpm.*rectified flow.*Use the sampler euler"),
        ({"spacing": "karras"}, "spacing karras.*euler with the spacing own"),
        ({"eta": 0.5}, "Eta 0.5 is for the sampler ddim alone"),
    ],
)
def test_samplers_of_noise_schedules_are_refused_in_words(fields, said):
    with pytest.raises(RequestError, match=said):
        generate(tiny_flows.base("flux1"), request(**fields))


def test_one_step_is_refused_where_the_last_level_is_set():
    with pytest.raises(RequestError, match=r"cannot do 1 step .*Use 2 steps or more"):
        generate(tiny_flows.base("qwen-image"), request(steps=1))
    assert generate(tiny_flows.base("z-image"), request(steps=1)).pictures


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read_beyond_the_window_of_clip(family):
    base = tiny_flows.base(family)
    start = "a fox on a hat, " * 12
    ends = [generate(base, request(prompt=start + end, guidance=Guidance(scale=1.0))).latents for end in ("cat", "fox")]
    assert (ends[0] - ends[1]).abs().max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_words_are_left_out_and_the_person_is_told(family):
    base, said = tiny_flows.base(family), []
    plain = generate(base, request(prompt="a fox on a hat")).latents
    weighted = generate(base, request(prompt="a (fox:1.4) on a [hat]"), on_event=said.append).latents
    assert torch.equal(plain, weighted)
    assert [event for event in said if isinstance(event, Note) and "weights of words" in event.text]


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_come_nearer_to_the_picture(family):
    base, seen = tiny_flows.base(family), []
    made = generate(base, request(steps=6, guidance=Guidance(scale=1.0)), conditions=[Watch(seen.append, times=5)])
    shown = [event.picture for event in seen if isinstance(event, Preview)]
    assert len(shown) == 5

    (small,) = to_pictures(latent_colours(base)(made.latents))
    result = small.resize(made.pictures[0].size, Image.Resampling.BICUBIC)

    def apart(picture):
        both = [torch.tensor(list(one.tobytes()), dtype=torch.float32) for one in (picture, result)]
        return float((both[0] - both[1]).abs().mean())

    assert apart(shown[-1]) <= apart(shown[0]) + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_repainted_stays_to_the_bit(family):
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    made = generate(tiny_flows.base(family), request(), conditions=[Inpainting(picture, mask)]).pictures[0]
    for place in ((0, 0), (31, 31), (4, 20)):
        assert made.getpixel(place) == picture.getpixel(place)
    assert made.crop((8, 8, 24, 24)).tobytes() != picture.crop((8, 8, 24, 24)).tobytes()


def test_what_needs_a_unet_says_so(tmp_path):
    base = tiny_flows.base("qwen-image")
    box = Box(phrase="fox", box=(0.1, 0.1, 0.5, 0.5))
    with pytest.raises(ModelError, match=r"Qwen-Image, a transformer: boxes.*Stable Diffusion 1\.x"):
        generate(base, request(boxes=(box,)))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    for engine in ("grid", "analogist"):
        asked = InContext(examples=(ExamplePair(before=path, after=path),), query=path, engine=engine)
        with pytest.raises(StudioError, match=r"inpainting|a transformer"):
            generate(base, request(in_context=asked))


def test_a_base_with_concepts_in_it_is_written_as_a_folder_of_its_family(tmp_path):
    from pipelines.concepts.model_export import export_model

    for family in FAMILIES:
        base = tiny_flows.base(family)
        loaded = load(export_model(base, [], tmp_path / family))
        assert tiny.same(tiny.snapshot(base), loaded), family
        seen = [generate(one, request()).latents for one in (base, loaded)]
        torch.testing.assert_close(*seen, atol=1e-5, rtol=0, msg=family)
