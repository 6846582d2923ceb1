"""The decoder that is trained once more: latents stay what they were, and what is drawn anew stays where it was."""

from __future__ import annotations

import pytest
import torch

from pipelines.events import Note
from pipelines.models.loading import load
from trainers.pretrain import decoder as stage
from trainers.pretrain.parts import autoencoder
from trainers.stickers.world import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    components = load("pocket")
    for part in (components.unet, components.vae, *components.text_encoders):
        part.requires_grad_(False)
    return components


def test_the_encoder_stays_and_the_decoder_learns(base, tmp_path):
    events = []
    before = {name: value.clone() for name, value in base.vae.state_dict().items()}
    vae = stage.train_decoder(tmp_path, base, steps=3, size=64, on_event=events.append, count=4, batch=4)
    assert all(
        torch.equal(value, before[f"encoder.{name}"].float()) for name, value in vae.encoder.state_dict().items()
    )
    assert all(torch.equal(value, before[name]) for name, value in base.vae.state_dict().items())
    assert vae.config["scaling_factor"] == pytest.approx(base.vae.config["scaling_factor"])
    assert {n: v.shape for n, v in vae.state_dict().items()} == {
        n: v.shape for n, v in autoencoder().state_dict().items()
    }
    assert any(isinstance(event, Note) and "drawn anew" in event.text for event in events)
    again = stage.train_decoder(tmp_path, base, steps=3, size=64, on_event=lambda event: None, count=4, batch=4)
    assert all(
        torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True)
    ), "what is finished is not trained further"


def test_what_is_drawn_anew_stays_where_it_was(base):
    images, captions = stage.real_pictures(6, 3, 64, "fluent", CPU)
    with torch.no_grad():
        latents = base.vae.encoder(stage.as_images(images)) * base.vae.config["scaling_factor"]
    anew = stage.redrawn(base, latents, captions, torch.Generator().manual_seed(0))
    assert anew.shape == latents.shape and not torch.allclose(anew, latents)
    far = (anew - latents).square().mean((1, 2, 3))
    other = (anew - latents.roll(1, 0)).square().mean((1, 2, 3))
    assert (far < other).all(), "each is nearer to its own picture than to another"


def test_flat_pictures_are_real_ones_too():
    shaded, captions = stage.real_pictures(5, 3, 64, "fluent", CPU)
    flat, others = stage.real_pictures(5, 3, 64, "flat", CPU)
    assert shaded.dtype == torch.uint8 and shaded.shape == flat.shape == (5, 3, 64, 64)
    assert not torch.equal(shaded, flat) and all("flat " in caption for caption in others)
    assert any(name in " ".join(captions) for name in NAMES)
