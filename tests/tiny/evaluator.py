"""An evaluator of a few thousand weights."""

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from sdatoms.evaluation.evaluator import StyleHead, save_evaluator
from tiny.pipelines import build_tokenizer, describe_text


def save_tiny_evaluator(folder, seed=0):
    """Width 16, 16 px pictures in patches of 4 px, captions of 8 letters; returns the folder."""
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    config = CLIPConfig(
        text_config=describe_text(tokenizer, 16).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_evaluator(folder, CLIPModel(config), StyleHead((8, 8), 12), tokenizer, size=16)
    return folder
