"""Requests of scripts for AUTOMATIC1111: every field that matters acts, or is named in the answer."""

from __future__ import annotations

import base64
import io
import json
import math
import textwrap

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from safetensors.torch import save_file
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.errors import RequestError
from pipelines.request.request import Request
from studio.api import a1111_lists
from studio.api.a1111 import routes
from studio.api.a1111_asked import (
    ImageToImage,
    TextToImage,
    base_of,
    blurred,
    content,
    inpaint_of,
    not_understood,
    request_of,
)
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.api.problems import answer_problems
from studio.jobs.jobs import Jobs

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
        asked = {
            "prompt": "a fox",
            "steps": 2,
            "seed": 1,
            "init_images": [RED],
            "mask": left_half(mode),
            "mask_blur": 0,
        }
        drawn = web.post("/sdapi/v1/img2img", json=asked | {"inpainting_mask_invert": invert, "denoising_strength": 1})
        seen = (np.asarray(picture_of(drawn.json())) != (250, 0, 0)).any(axis=2)
        changed.append((seen[:, :32].mean(), seen[:, 32:].mean()))
    assert changed[0][0] > 0.5 and changed[0][1] == 0 and changed[1][0] == 0 and changed[1][1] > 0.5


def test_all_that_a_client_sends_is_taken_and_nothing_is_named(web):
    drawn = web.post("/sdapi/v1/txt2img", json=TEXT).json()
    info = json.loads(drawn["info"])
    assert info["ignored"] == {} and "Sampler: Euler a" in info["infotexts"][0] and len(drawn["images"]) == 1
    sent = PICTURE | {"init_images": [RED], "mask": left_half()}
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
    assert (asked["only_masked"], asked["padding"]) == (True, 24)
    whole = inpaint_of(ImageToImage(init_images=[RED], mask=left_half(), inpaint_full_res=False), resting)
    assert "only_masked" not in whole
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


def test_a_second_pass_is_asked_for_by_any_spelling_of_its_upscaler(resting):
    def enlarge(**sent):
        return request_of(TextToImage(prompt="a fox", enable_hr=True, **sent), resting).get("enlarge")

    (resting.folder / "upscalers" / "4x-Fine.pth").touch()
    assert enlarge() == {"factor": 2.0, "strength": 0.75, "by": "latents"}
    assert enlarge(hr_upscaler="Latent (nearest)", denoising_strength=0)["strength"] == 0
    assert enlarge(hr_upscaler="None", hr_scale=1.5) == {"factor": 1.5, "strength": 0.75}
    for name in ("4x-Fine", "4x-fine.pth"):
        assert enlarge(hr_upscaler=name)["upscaler"] == "4x-Fine.pth"
    (resting.folder / "upscalers" / "Latent-Sharp.pth").touch()
    assert enlarge(hr_upscaler="Latent-Sharp")["upscaler"] == "Latent-Sharp.pth"
    assert enlarge(width=64, height=64, hr_resize_x=96)["factor"] == 1.5
    with pytest.raises(RequestError, match=r"no upscaler 'SwinIR'.*4x-Fine\.pth"):
        enlarge(hr_upscaler="SwinIR")
    with pytest.raises(RequestError, match="needs width and height"):
        enlarge(hr_resize_x=96)
    assert "enlarge" not in request_of(ImageToImage(prompt="a fox", init_images=["x"], enable_hr=True), resting)
    other = {"hr_prompt": "a dog", "hr_second_pass_steps": 9, "hr_resize_x": 96, "hr_resize_y": 128}
    named = not_understood(
        TextToImage(enable_hr=True, width=64, height=64, hr_sampler_name="Use same sampler", **other)
    )
    assert named.keys() == other.keys() - {"hr_resize_y"}
    assert not not_understood(TextToImage(**other))


def test_the_rim_of_a_mask_is_blurred_on_both_sides_where_it_is_drawn_alone():
    """The profile of an edge under a Gaussian is the error function; of a whole picture its outer half, doubled."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    around = [0.5 * (1 + math.erf((31.5 - place) / 3 / math.sqrt(2))) for place in range(64)]
    for sent, wanted in (
        ({"mask_blur": 3}, around),
        ({"mask_blur": 3, "inpaint_full_res": False}, np.minimum(2 * np.array(around), 1)),
        ({"mask_blur_x": 3, "mask_blur_y": 0}, around),
        ({"mask_blur_x": 0, "mask_blur_y": 3}, np.arange(64) < 32),
        ({"mask_blur": 0, "mask_blur_x": 9}, np.arange(64) < 32),
    ):
        seen = np.asarray(blurred(mask, ImageToImage(init_images=[RED], **sent))) / 255
        assert np.abs(seen - np.asarray(wanted, float)).max() < 0.012, sent
    assert ImageToImage(init_images=[RED]).blur == (4, 4)  # there, too, if nothing is said
    thin = Image.new("L", (64, 64), 0)
    thin.paste(255, (0, 0, 1, 64))
    with pytest.raises(RequestError, match="mask_blur of 20 leaves nothing"):
        blurred(thin, ImageToImage(init_images=[RED], mask_blur=20))


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        ({"override_settings": {"sd_model_checkpoint": "other-model"}}, "checkpoint 'other-model'"),
        ({"refiner_checkpoint": "xl-refiner"}, "refiner 'xl-refiner'"),
        ({"script_name": "X/Y/Z plot"}, "script 'X/Y/Z plot'"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "script 'ADetailer'"),
    ],
)
def test_a_foreign_checkpoint_or_script_is_refused(web, sent, what):
    answer = web.post("/sdapi/v1/txt2img", json={"prompt": "a fox", "steps": 1} | sent)
    assert answer.status_code == 422 and f"There is no {what}" in answer.json()["detail"] and answer.json()["hint"]


def test_a_base_is_asked_for_by_any_of_its_spellings():
    bases = {"pocket": "pocket", "v1-5.safetensors": "/x/v1-5.safetensors"}
    for said in ("V1-5", "v1-5.safetensors", "v1-5.safetensors [6ce0161689]"):
        assert base_of(said, bases, "pocket") == "v1-5.safetensors"
    assert base_of(None, bases, "pocket") == base_of("None", bases, "pocket") == "pocket"


# -- waiting and telling --------------------------------------------------------------------------------------------


def test_waiting_has_an_end_and_says_what_it_waited_for(resting):
    app = FastAPI()
    answer_problems(app)
    app.include_router(routes(resting, "pocket", patience=0.3), prefix="/sdapi/v1")  # nobody is at work
    answer = TestClient(app).post("/sdapi/v1/txt2img", json={"prompt": "a fox"})
    (job,) = resting.list()
    assert answer.status_code == 504 and f"job {job.id} is queued" in answer.json()["detail"]


def test_info_tells_all_that_was_drawn(web):
    sent = {
        "prompt": "a fox",
        "negative_prompt": "dog",
        "batch_size": 2,
        "seed": 5,
        "steps": 2,
        "sampler_name": "Euler",
    }
    info = json.loads(web.post("/sdapi/v1/txt2img", json=sent).json()["info"])
    wanted = {
        "all_prompts": ["a fox", "a fox"],
        "all_negative_prompts": ["dog", "dog"],
        "all_seeds": [5, 6],
        "sampler_name": "Euler",
        "steps": 2,
        "width": 64,
        "height": 64,
        "batch_size": 2,
        "sd_model_name": "pocket",
        "clip_skip": 1,
        "denoising_strength": None,
    }
    assert {name: info[name] for name in wanted} == wanted
    assert info["cfg_scale"] > 1 and info["sd_model_hash"] in info["infotexts"][0]
    missing = {  # the keys of `Processed.js` of AUTOMATIC1111 1.10
        "prompt", "negative_prompt", "seed", "subseed", "all_subseeds", "subseed_strength", "restore_faces",
        "face_restoration_model", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w", "seed_resize_from_h",
        "extra_generation_params", "index_of_first_image", "infotexts", "styles", "job_timestamp",
        "is_using_inpainting_conditioning", "version",
    } - info.keys()  # fmt: skip
    assert not missing


def test_lists_that_are_asked_again_read_no_header_but_of_what_changed(resting, monkeypatch):
    def word(name, rows):
        Concept(ConceptCard(token=f"<{name}>", family="pocket", vectors=rows), (torch.zeros(rows, 96),)).save(
            resting.learned / f"{name}.safetensors"
        )

    read, real = [], a1111_lists.read_header
    monkeypatch.setattr(a1111_lists, "read_header", lambda path: (read.append(path.stem), real(path))[1])
    web = TestClient(guarded(rest(resting), Door()), base_url="http://localhost")
    for name in ("one", "two"):
        word(name, 2)
    for wanted, change in (({"one", "two"}, None), (set(), None), ({"two"}, lambda: word("two", 3))):
        if change:
            change()
        for name in ("loras", "embeddings"):
            assert web.get(f"/sdapi/v1/{name}").status_code == 200
        assert set(read) == wanted and len(read) == len(wanted)
        read.clear()


def test_lists_have_the_shape_that_clients_read(resting):
    card = ConceptCard(token="<w>", family="pocket", vectors=2)
    Concept(card, (torch.zeros(2, 96),)).save(resting.learned / "w.safetensors")
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)},
              resting.learned / "ink.safetensors",
              metadata={"ss_sd_model_name": "/home/me/bases/v1-5.ckpt", "secret": "x"})  # fmt: skip
    web = TestClient(guarded(rest(resting), Door()), base_url="http://localhost")

    def told(name):
        answer = web.get(f"/sdapi/v1/{name}")
        assert answer.status_code == 200, name
        return answer.json()

    assert [one["name"] for one in told("loras")] == ["ink"]
    assert told("loras")[0] == {
        "name": "ink", "alias": "ink", "path": "ink.safetensors", "metadata": {"ss_sd_model_name": "v1-5.ckpt"}
    }  # fmt: skip
    assert told("embeddings")["loaded"]["<w>"] | {"vectors": 2, "shape": 96} == told("embeddings")["loaded"]["<w>"]
    assert [one["name"] for one in told("schedulers")] == ["automatic", "karras", "sgm_uniform"]
    for one in told("schedulers"):  # a name that is listed is understood
        for sampler in one["samplers"]:
            assert not_understood(TextToImage(sampler_name=sampler, scheduler=one["name"])) == {}
    assert [one["name"] for one in told("upscalers")] == ["None", "Lanczos", "Nearest"]
    assert told("latent-upscale-modes") == [{"name": "Latent"}]
    for name in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models",
                 "prompt-styles", "script-info"):  # fmt: skip
        assert told(name) == []
    assert told("scripts") == {"txt2img": [], "img2img": []} and told("cmd-flags")["api"] is True
    assert told("memory")["ram"]["total"] > told("memory")["ram"]["used"] > 0 and "error" in told("memory")["cuda"]
    assert {"title", "model_name", "hash", "sha256", "filename", "config"} == told("sd-models")[0].keys()
    assert web.post("/sdapi/v1/refresh-checkpoints").status_code == 200


def test_options_choose_among_the_bases_there_are(tmp_path):
    jobs = Jobs(tmp_path / "studio", bases={"pocket": "pocket", "twin": "pocket"}, warm=False)
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    answer = web.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nobody"})
    assert answer.status_code == 422 and "pocket, twin" in answer.json()["hint"]
    answer = web.post("/sdapi/v1/options", json={"sd_model_checkpoint": "twin", "eta_noise_seed_delta": 31337})
    assert answer.json() == {"ignored": ["eta_noise_seed_delta"]}
    assert web.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "twin"}


def test_null_is_the_default(resting):
    nothing = dict.fromkeys([*TextToImage.model_fields, "restore_faces"])
    assert TextToImage(**nothing) == TextToImage() and not_understood(TextToImage(**nothing)) == {}
    assert 0 <= request_of(TextToImage(seed=None), resting)["seed"] < 2**32
    assert ImageToImage(init_images=[RED], mask=None, mask_blur=None).blur == (4, 4)


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
        {"scheduler": "Karras"},
        {"sampler_name": "Euler a", "eta": 0.5},
        {"resize_mode": 1},
        {"inpainting_fill": 2},
        {"controlnet_units": [{}]},
        {"inpainting_mask_invert": 1},
    ],
)
def test_each_field_without_effect_is_named(sent):
    named = not_understood(ImageToImage(init_images=[RED], **sent))
    assert list(named) == [name for name in sent if name != "sampler_name"]
