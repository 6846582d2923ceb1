"""P+: Textual Inversion with rows of its own for each cross-attention layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines.concepts.parts.layer_rows import cross_attention
from tests import tiny
from trainers.data.batches import LatentSet
from trainers.loop.train import train
from trainers.methods.p_plus import PAPER, PPlus, PPlusConfig
from trainers.methods.textual_inversion import TextualInversion, TextualInversionConfig
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

WORD = {"token": "<x>", "init": "fox", "vectors": 2}


@pytest.fixture(params=[tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def base(request):
    return request.param()


def run(**pace):
    return Run(PPlus(), PPlusConfig(**WORD), TrainConfig(**pace), DataConfig(images="unused"))


def test_before_the_first_step_it_has_the_loss_of_textual_inversion(base):
    data = LatentSet(base, tiny.examples(), resolution=16)
    losses = []
    for method, config in ((PPlus(), PPlusConfig(**WORD)), (TextualInversion(), TextualInversionConfig(**WORD))):
        with method.prepare(base, config, torch.Generator().manual_seed(0)) as trainable, torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            batch = data.draw(0, 2, "<x>", trainable.templates, generator)
            losses.append(method.losses(trainable, batch, generator)["denoise"])
    torch.testing.assert_close(*losses)


def test_every_layer_learns_rows_of_its_own(base):
    concept = train(base, run(steps=3, batch=2, learning_rate=1e-2, scale_lr=False), tiny.examples())
    (part,) = concept.parts
    for rows, encoder in zip(part.rows, base.text_encoders, strict=True):
        assert rows.shape == (len(cross_attention(base)), 2, encoder.config.hidden_size)
        assert len({tuple(row.flatten().tolist()) for row in rows}) == len(rows)
    assert (concept.card.method, concept.card.vectors, concept.card.init) == ("p-plus", 2, "fox")


def test_the_recipe_is_the_papers_and_on_pocket_that_of_textual_inversion():
    one = run()
    assert one.with_recipe("sd1").train.steps == PAPER["steps"] == 500
    other = replace(one, method=TextualInversion())
    assert one.with_recipe("pocket").train == other.with_recipe("pocket").train
