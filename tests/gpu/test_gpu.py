"""What only a GPU can show. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import pytest
import torch

from pipelines.denoising import generate
from pipelines.request import Request
from tests import tiny
from trainers.config import DataConfig, TrainConfig
from trainers.textual_inversion import TextualInversion, TextualInversionConfig
from trainers.train import Run, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
REQUEST = Request(prompt="a fox", steps=4, width=16, height=16, scheduler="ddim")


def test_a_seed_means_the_same_picture_as_on_the_cpu():
    on_cpu = generate(tiny.sd(), REQUEST).latents
    on_gpu = generate(tiny.sd().to("cuda"), REQUEST).latents
    torch.testing.assert_close(on_gpu, on_cpu, atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gives_finite_pictures(dtype):
    assert torch.isfinite(generate(tiny.sd().to("cuda", dtype), REQUEST).latents).all()


def test_rows_stay_float32_under_low_precision():
    run = Run(
        TextualInversion(),
        TextualInversionConfig(token="<x>", init="fox"),
        TrainConfig(steps=3, batch=2, precision="bf16"),
        DataConfig(images="unused"),
    )
    concept = train(tiny.sd().to("cuda"), run, tiny.examples())
    assert concept.rows[0].dtype == torch.float32
