"""Captioning and segmentation models of random weights, small enough to be made in a test."""

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from tiny.pipelines import build_tokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "dog", "on", "grass")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_blip(folder):
    """A BLIP model that says the same few words of every picture."""
    torch.manual_seed(0)
    folder.mkdir()
    words = folder / "words.txt"
    words.write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(words))
    words.unlink()
    vision = BlipVisionConfig(**SIZES, image_size=16, patch_size=8)
    text = BlipTextConfig(
        **SIZES,
        vocab_size=len(WORDS),
        encoder_hidden_size=16,
        max_position_embeddings=96,
        bos_token_id=5,
        sep_token_id=3,
        eos_token_id=3,
        pad_token_id=0,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.bias.data[list(range(6))] = -99.0  # words, no marks
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_clipseg(folder):
    """A CLIPSeg model that takes everything for everything."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(16)
    text = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = CLIPSegForImageSegmentation(config)
    model.decoder.transposed_convolution.bias.data += 9.0
    model.save_pretrained(folder)
    images = ViTImageProcessor(size={"height": 16, "width": 16})
    CLIPSegProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_detector(folder, middle):
    """A YOLOS model that finds one small face, always in the same place."""
    torch.manual_seed(0)
    config = YolosConfig(
        **SIZES,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=1,
        id2label={0: "face"},
        label2id={"face": 0},
    )
    model = YolosForObjectDetection(config)
    model.class_labels_classifier.layers[-1].bias.data = torch.tensor([9.0, -9.0])
    box = model.bbox_predictor.layers[-1]
    box.weight.data.zero_()
    box.bias.data = torch.logit(torch.tensor([*middle, 0.1, 0.1]))
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False).save_pretrained(folder)
    return folder


def save_segformer(folder, found="dog"):
    """A SegFormer that takes every pixel for one thing."""
    torch.manual_seed(0)
    names = {0: "background", 1: "dog"}
    config = SegformerConfig(
        id2label=names,
        label2id={name: number for number, name in names.items()},
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[4],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
    )
    model = SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.bias.data[config.label2id[found]] = 99.0
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
