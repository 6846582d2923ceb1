"""Boxes with a picture of what is to stand there, for bases whose gated layers read pictures."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionGLIGENTextImagePipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.components import Components
from pipelines.models.loading import from_pipeline, load
from pipelines.models.schedulers import build
from pipelines.request.request import Box, Grounding, Guidance, Request
from tests import tiny

WHERE = (0.1, 0.2, 0.5, 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base in the layout of the official text-and-picture checkpoints, and two pictures of squares."""
    place = tmp_path_factory.mktemp("base")
    pipeline = tiny.sd_pipeline()
    torch.manual_seed(2)
    config = dict(pipeline.unet.config) | {"attention_type": "gated-text-image"}
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    pipeline.register_modules(unet=unet)
    tiny.open_gates(from_pipeline(pipeline, "tiny"))
    pipeline.save_pretrained(place)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
                              image_size=32, patch_size=8, projection_dim=32)  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(place / "image_encoder")
    CLIPImageProjection(32).save_pretrained(place / "image_project")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(place / "processor")
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 220))):
        Image.new("RGB", (40, 40), colour).save(place / f"{name}.png")
    return place


def asked(*boxes, **fields):
    return Request(
        prompt="a fox",
        boxes=boxes,
        grounding=Grounding(beta=1.0),
        guidance=Guidance(scale=4.0, rescale=0.0),
        **{"scheduler": "ddim", "steps": 4, "width": 16, "height": 16, "seed": 3} | fields,
    )


def theirs(base: Components, folder, request):
    pipeline = StableDiffusionGLIGENTextImagePipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        processor=CLIPImageProcessor.from_pretrained(folder / "processor"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        image_project=CLIPImageProjection.from_pretrained(folder / "image_project"),
        unet=base.unet,
        scheduler=build("ddim", base.scheduler_config, 4, "cpu"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        request.prompt,
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        gligen_phrases=[box.phrase for box in request.boxes],
        gligen_images=[Image.open(box.picture) if box.picture else None for box in request.boxes],
        gligen_boxes=[list(box.box) for box in request.boxes],
        generator=[torch.Generator().manual_seed(request.seed)],
        output_type="latent",
    ).images


def test_latents_equal_those_of_the_text_and_picture_pipeline(folder):
    base = load(str(folder))
    request = asked(
        Box(phrase="a fox", box=WHERE, picture=str(folder / "red.png")), Box(phrase="a house", box=(0.5, 0.5, 1, 1))
    )
    torch.testing.assert_close(generate(base, request).latents, theirs(base, folder, request), atol=1e-4, rtol=0)
    assert base.unet.position_net.training is False


def test_the_picture_of_a_box_matters_and_phrases_alone_work(folder):
    base = load(str(folder))
    drawn = [
        generate(base, asked(Box(phrase="a fox", box=WHERE, picture=picture and str(folder / picture)))).latents
        for picture in (None, "red.png", "blue.png")
    ]
    for one, other in ((drawn[0], drawn[1]), (drawn[1], drawn[2])):
        assert (one - other).abs().max() > 1e-3


def test_pictures_that_cannot_be_read_and_missing_parts_are_one_error(folder, tmp_path):
    base = load(str(folder))
    with pytest.raises(RequestError, match=r"reference picture.*gone\.png"):
        generate(base, asked(Box(phrase="a fox", box=WHERE, picture="gone.png")))
    elsewhere = Components(**{**vars(base), "name": str(tmp_path)})
    with pytest.raises(RequestError, match="lacks what encodes them"):
        generate(elsewhere, asked(Box(phrase="a fox", box=WHERE, picture=str(folder / "red.png"))))
