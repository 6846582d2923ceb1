from __future__ import annotations

import pytest
import torch

from pipelines.errors import ModelError
from pipelines.measures.judge import Judge
from trainers.pretrain.parts import text_config
from trainers.pretrain.vocabulary import build_tokenizer


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8)).eval().requires_grad_(False)


def test_both_towers_give_unit_vectors_of_one_space(judge):
    pictures = judge.embed_pictures(torch.rand(3, 3, 64, 64) * 2 - 1)
    texts = judge.embed_texts(["a fox", "a rather longer caption with a house on a blue background"])
    assert pictures.shape[1] == texts.shape[1]
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_a_text_means_the_same_alone_and_beside_longer_ones(judge):
    alone = judge.embed_texts(["a fox"])
    together = judge.embed_texts(["a fox", "a fox to the left of a house on a blue background"])[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_pictures_of_other_sizes_are_resized(judge):
    large = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(128, 128)) * 2 - 1
    small = torch.nn.functional.interpolate(large, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(judge.embed_pictures(large), judge.embed_pictures(small), atol=1e-4, rtol=1e-3)


def test_a_judge_survives_its_files(judge, tmp_path):
    judge.save(tmp_path)
    loaded = Judge.load(tmp_path)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(loaded.embed_pictures(image), judge.embed_pictures(image), atol=5e-3, rtol=0)
    torch.testing.assert_close(loaded.embed_texts(["a fox"]), judge.embed_texts(["a fox"]), atol=5e-3, rtol=0)
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_a_missing_judge_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelError, match=r"trainers\.pretrain judge"):
        Judge.load(tmp_path)
