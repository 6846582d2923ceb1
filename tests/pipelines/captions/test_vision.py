"""Captioners of transformers on real classes with tiny random weights: what is wired, not what is said."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
)

from pipelines.captions import vision
from pipelines.captions.vision import vision_captioner
from pipelines.errors import ModelError

WORDS = ["a", "fox", "house", "red", "on", "describe", "what", "is", "shown", "in", "the", "image", "paragraph"]
PICTURE = Image.new("RGB", (40, 30), "red")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), bos_token="[DEC]")
    count = len(tokenizer)
    text = {"vocab_size": count, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": 5,
            "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=seen)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def florence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("florence")
    words = {word: place for place, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    config = Florence2Config(
        text_config=BartConfig(
            vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=128,
        ),
        vision_config={"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 8, 8], "num_groups": [2] * 4,
                       "num_heads": [2] * 4, "projection_dim": 16, "window_size": 2, "max_position_embeddings": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    Florence2Processor(images, tokenizer, num_additional_image_tokens=0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["blip", "florence"])
def test_a_folder_writes_one_line_and_always_the_same(kind, request):
    folder = request.getfixturevalue(kind)
    caption = vision_captioner(folder)
    said = caption(PICTURE)
    assert said == caption(PICTURE) == vision_captioner(folder)(PICTURE)
    assert said and "\n" not in said and not any(mark in said for mark in ("<s>", "</s>", "<pad>", "[SEP]", "[PAD]"))
    assert set(said.split()) <= {*WORDS, "<unk>", "[UNK]", "<image>", "[DEC]"}


def test_blip_says_what_its_model_generates(blip):
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipProcessor.from_pretrained(blip)
    inputs = processor(images=PICTURE, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=vision.LONGEST, num_beams=3, do_sample=False)
    assert vision_captioner(blip)(PICTURE) == " ".join(processor.decode(made[0], skip_special_tokens=True).split())


def test_other_folders_are_refused(tmp_path, blip):
    with pytest.raises(ModelError, match="no captioner"):
        vision_captioner(tmp_path / "gone")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="is a llama"):
        vision_captioner(tmp_path)
    (tmp_path / "config.json").write_text((blip / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be read"):
        vision_captioner(tmp_path)
