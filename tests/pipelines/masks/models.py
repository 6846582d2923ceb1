"""Models for masks and names with small random weights, of the real classes, as folders in the transformers layout."""

from __future__ import annotations

import json

import torch
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamModel,
)

from tests import tiny

DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "pretrain_image_size": 56,
    "window_size": 2,
    "global_attn_indexes": [1],
}


def sam():
    return SamModel(
        SamConfig(
            vision_config={
                "hidden_size": 32,
                "output_channels": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 8,
                "window_size": 4,
                "global_attn_indexes": [0],
                "num_pos_feats": 16,
                "mlp_dim": 32,
            },
            prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
            mask_decoder_config=DECODER,
        )
    )


def sam2():
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    return Sam2Model(
        Sam2Config(
            vision_config={
                "backbone_config": backbone,
                "backbone_channel_list": [64, 32, 16, 8],
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
                "fpn_hidden_size": 32,
            },
            prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
            mask_decoder_config=DECODER,
        )
    )


def sam3_tracker():
    return Sam3TrackerModel(
        Sam3TrackerConfig(
            vision_config={
                "backbone_config": VIT,
                "fpn_hidden_size": 32,
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            },
            prompt_encoder_config={"hidden_size": 32, "image_size": 56, "patch_size": 14},
            mask_decoder_config=DECODER,
        )
    )


def sam3():
    layers = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    words = len(tiny.tokenizer())
    return Sam3Model(
        Sam3Config(
            vision_config={
                "backbone_config": VIT,
                "fpn_hidden_size": 32,
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            },
            text_config=CLIPTextConfig(
                vocab_size=words,
                hidden_size=32,
                intermediate_size=32,
                projection_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
            ).to_dict(),
            geometry_encoder_config=layers,
            detr_encoder_config=layers,
            detr_decoder_config={**layers, "num_queries": 5},
            mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
        )
    )


def owlv2():
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = tiny.tokenizer()
    words.model_max_length = 16
    vision = {**text, "image_size": 32, "patch_size": 8}
    model = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={**text, "vocab_size": len(words), "max_position_embeddings": 16},
            vision_config=vision,
            projection_dim=32,
        )
    )
    with torch.no_grad():  # at random its boxes are lines at the rim
        for parameter in model.box_head.parameters():
            parameter.mul_(0.01)
    return model, Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), words)


def grounding_dino():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, ".": 5, "fox": 6, "red": 7, "cup": 8, "?": 9}
    backbone = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "image_size": 32,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    text = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=6,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        d_model=32,
        fusion_droppath=0.0,
        disable_custom_kernels=True,
    )
    images = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 192})
    return GroundingDinoForObjectDetection(config), GroundingDinoProcessor(images, BertTokenizer(vocab=words))


MADE = {
    "sam": sam,
    "sam2": sam2,
    "sam3_tracker": sam3_tracker,
    "sam3": sam3,
    "owlv2": owlv2,
    "grounding-dino": grounding_dino,
}


def folder_of(kind, path):
    """Write a model of a kind, and what reads words and pictures for it, into a folder; return the folder."""
    torch.manual_seed(0)
    made = MADE[kind]()
    for part in made if isinstance(made, tuple) else (made,):
        part.save_pretrained(path)
    if kind == "sam3":
        tiny.tokenizer().save_pretrained(path)
    return path


def called(folder, kind):
    """The same folder, calling itself a model of another kind."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    return folder
