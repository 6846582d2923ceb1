"""What scripts for AUTOMATIC1111 ask: every field that matters acts, or is named in the answer."""

from __future__ import annotations

import base64
import io
import json
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from pipelines.card import ConceptCard
from pipelines.concept import Concept
from pipelines.errors import RequestError
from pipelines.request import Request
from studio.api.a1111_asked import ImageToImage, TextToImage, content, inpaint_of, not_understood, request_of
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs import Jobs

TEXT = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "prompt": "a fox",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 2,
    "cfg_scale": 7.0,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
"""All that the client `webuiapi` 0.9.17 sends to txt2img."""

PICTURE = {
    **{name: value for name, value in TEXT.items() if not name.startswith(("hr_", "enable", "firstphase"))},
    "resize_mode": 0,
    "denoising_strength": 1.0,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "image_cfg_scale": 1.5,
    "include_init_images": False,
}
"""All that it sends to img2img, beside the pictures."""


def encoded(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


RED = encoded(Image.new("RGB", (64, 64), (250, 0, 0)))


def left_half(mode="L"):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    if mode == "RGBA":
        clear = Image.new("RGBA", (64, 64), "white")
        clear.putalpha(mask)
        return encoded(clear)
    return encoded(mask)


def picture_of(asked):
    return Image.open(io.BytesIO(base64.b64decode(asked["images"][0]))).convert("RGB")


@pytest.fixture(scope="module")
def web(jobs):
    return TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")


@pytest.fixture
def resting(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


# -- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_the_other_half_is_painted_when_the_mask_is_inverted(web, mode):
    changed = []
    for invert in (0, 1):
        asked = {"prompt": "a fox", "steps": 2, "seed": 1, "init_images": [RED], "mask": left_half(mode)}
        drawn = web.post("/sdapi/v1/img2img", json=asked | {"inpainting_mask_invert": invert, "denoising_strength": 1})
        seen = (np.asarray(picture_of(drawn.json())) != (250, 0, 0)).any(axis=2)
        changed.append((seen[:, :32].mean(), seen[:, 32:].mean()))
    assert changed[0][0] > 0.5 and changed[0][1] == 0 and changed[1][0] == 0 and changed[1][1] > 0.5


def test_all_that_a_client_sends_is_taken_and_nothing_is_named(web):
    drawn = web.post("/sdapi/v1/txt2img", json=TEXT).json()
    info = json.loads(drawn["info"])
    assert info["ignored"] == {} and "Sampler: Euler a" in info["infotexts"][0] and len(drawn["images"]) == 1
    sent = PICTURE | {"init_images": [RED], "mask": left_half(), "mask_blur": 0}
    drawn = web.post("/sdapi/v1/img2img", json=sent).json()
    assert json.loads(drawn["info"])["ignored"] == {} and picture_of(drawn).size == (64, 64)


def test_what_has_no_effect_is_named_in_the_answer(web):
    sent = {"prompt": "a <nobody>", "steps": 1, "restore_faces": True, "negative_prompt": "<lora:x:1>", "new_field": 3}
    info = json.loads(web.post("/sdapi/v1/txt2img", json=sent).json()["info"])
    assert set(info["ignored"]) == {"restore_faces", "negative_prompt", "new_field"}
    assert any("<nobody> is no word" in note for note in info["notes"])


# -- requests -------------------------------------------------------------------------------------------------------


def test_the_surroundings_of_a_mask_and_its_blur_are_asked_for(resting):
    sent = {"init_images": [RED], "mask": left_half(), "mask_blur": 6, "inpaint_full_res": True}
    asked = inpaint_of(ImageToImage(**sent, inpaint_full_res_padding=24), resting)
    assert (asked["feather"], asked["only_masked"], asked["padding"]) == (6, True, 24)
    plain = inpaint_of(ImageToImage(init_images=[RED], mask=left_half()), resting)
    assert plain["feather"] == 0 and "only_masked" not in plain
    assert set(inpaint_of(ImageToImage(**sent | {"mask": None}), resting)) == {"image", "strength"}
    Request.read({"prompt": "", "inpaint": asked})


@pytest.mark.parametrize(
    ("strength", "steps", "least"), [(0, 20, 0.05), (0, None, 0.04), (0.01, 10, 0.1), (0.5, 4, 0.5)]
)
def test_no_strength_is_one_step(resting, strength, steps, least):
    asked = ImageToImage(init_images=[RED], denoising_strength=strength, steps=steps)
    assert inpaint_of(asked, resting)["strength"] == pytest.approx(least)


def test_the_sampler_is_read_from_either_field(resting):
    for sent in ({"sampler_index": "Euler a"}, {"sampler_name": "Euler a", "sampler_index": "DDIM"}):
        assert request_of(TextToImage(**sent), resting)["scheduler"] == "euler-a"
    for sent in ({}, {"sampler_name": ""}, {"sampler_name": None}, {"sampler_index": "Automatic"}):
        assert "scheduler" not in request_of(TextToImage(**sent), resting)
    with pytest.raises(RequestError, match="no sampler 'none'"):
        request_of(TextToImage(sampler_index="none"), resting)


def test_spacing_eta_and_clip_skip_are_asked_for_where_the_sampler_has_them(resting):
    for sent in ({"sampler_name": "DPM++ 2M Karras"}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}):
        assert request_of(TextToImage(**sent), resting)["spacing"] == "karras"
        assert not_understood(TextToImage(**sent)) == {}
    sgm = TextToImage(sampler_name="Euler", scheduler="sgm_uniform", eta=0.5)
    asked = request_of(sgm, resting)
    assert asked["spacing"] == "sgm" and "eta" not in asked
    odd = TextToImage(sampler_name="DDIM Karras", eta=0.5, override_settings={"CLIP_stop_at_last_layers": 2})
    asked = request_of(odd, resting)
    assert (asked["eta"], asked["clip_skip"], "spacing" in asked) == (0.5, 2, False)
    assert list(not_understood(odd)) == ["scheduler"]
    for one in (sgm, odd):
        Request.read({name: value for name, value in request_of(one, resting).items() if name != "concepts"})


def test_null_is_the_default(resting):
    nothing = dict.fromkeys([*TextToImage.model_fields, "restore_faces"])
    assert TextToImage(**nothing) == TextToImage() and not_understood(TextToImage(**nothing)) == {}
    assert 0 <= request_of(TextToImage(seed=None), resting)["seed"] < 2**32
    assert ImageToImage(init_images=[RED], mask=None, mask_blur=None).mask_blur == 0


def test_base64_in_lines_is_read():
    wrapped = "\r\n".join(textwrap.wrap(RED, 76))
    assert content(wrapped) == content(f"data:image/png;base64,{wrapped}") == content(RED)


def test_words_are_used_whatever_their_capitals_and_loras_of_the_prompt_alone(resting):
    Concept(ConceptCard(token="<My-Wolf>", family="pocket"), (torch.zeros(1, 96),)).save(
        resting.learned / "w.safetensors"
    )
    asked = request_of(TextToImage(prompt="a <my-wolf>", negative_prompt="bad <lora:other:1> fox"), resting)
    assert asked["prompt"] == "a <My-Wolf>" and asked["negative_prompt"].split() == ["bad", "fox"]
    assert asked["concepts"] == [{"source": "w", "strength": 1.0}]
    asked = request_of(TextToImage(prompt="a fox <lora:w:0.5>", negative_prompt="<MY-WOLF>"), resting)
    assert asked["concepts"] == [{"source": "w", "strength": 0.5}] and asked["negative_prompt"] == "<My-Wolf>"


@pytest.mark.parametrize(
    "sent",
    [
        {"enable_hr": True},
        {"styles": ["ink"]},
        {"subseed_strength": 0.5},
        {"tiling": True},
        {"override_settings": {"eta_noise_seed_delta": 31337}},
        {"override_settings": {"CLIP_stop_at_last_layers": 99}},
        {"alwayson_scripts": {"ADetailer": {}}},
        {"scheduler": "Karras"},
        {"resize_mode": 1},
        {"inpainting_fill": 2},
        {"controlnet_units": [{}]},
        {"inpainting_mask_invert": 1},
    ],
)
def test_each_field_without_effect_is_named(sent):
    assert list(not_understood(ImageToImage(init_images=[RED], **sent))) == list(sent)
