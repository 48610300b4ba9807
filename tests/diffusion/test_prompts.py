"""Weights in prompts and prompts past the text encoder's window."""

import pytest
import torch
from compel import CompelForSD, CompelForSDXL
from tiny.pipelines import build_pipeline

from sdatoms import AtomError
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.prompts import count_tokens, embed_prompt, encode_prompts, parse_prompt


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return load_base(str(tiny_base))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (cat:1.3)", [("a ", 1.0), ("cat", 1.3)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("((x)) [y]", [("x", 1.1 * 1.1), (" ", 1.0), ("y", 1 / 1.1)]),
        (r"\(plain\) 1:2 )", [("(plain) 1:2 )", 1.0)]),
        ("open (end", [("open ", 1.0), ("end", 1.1)]),
        ("(x:-0.5)", [("x", -0.5)]),
    ],
)
def test_brackets_become_weights(text, pieces):
    found = parse_prompt(text)
    assert [t for t, _ in found] == [t for t, _ in pieces]
    assert [w for _, w in found] == pytest.approx([w for _, w in pieces])


def test_weights_out_of_range_are_refused():
    with pytest.raises(AtomError, match="weights go from -10 to 10"):
        parse_prompt("(cat:99)")


def test_plain_prompts_are_the_pipelines_own(pipe):
    assert encode_prompts(pipe, ["cat"], "bad") == {"prompt": ["cat"], "negative_prompt": ["bad"]}
    weighted = encode_prompts(pipe, ["(cat:1.0) "], None)["prompt_embeds"]
    own = pipe.encode_prompt("cat", "cpu", 1, False)[0]
    torch.testing.assert_close(weighted, own, rtol=0, atol=0)


def test_every_token_of_a_long_prompt_counts(pipe):
    long = "abcdefgh ijklmnop qrstuvwx yzabcd"
    count = count_tokens(pipe, long)
    assert count.tokens > 2 * count.window and count.windows == 3
    embeds = encode_prompts(pipe, [long, "short"], "no")
    assert embeds["prompt_embeds"].shape == (2, 3 * 16, 12)
    assert embeds["negative_prompt_embeds"].shape == (2, 3 * 16, 12)
    other = encode_prompts(pipe, [long[:-1] + "e"], None)["prompt_embeds"]
    assert torch.equal(other[:, :32], embeds["prompt_embeds"][:1, :32])
    assert not torch.equal(other[:, 32:], embeds["prompt_embeds"][:1, 32:])
    with pytest.raises(AtomError, match="at most 112 are taken"):
        encode_prompts(pipe, ["abcdefghij " * 20])


def test_a_weight_moves_its_token_along_the_line_from_the_empty_prompt(pipe):
    def embed(text):
        return encode_prompts(pipe, [text])["prompt_embeds"][0]

    one, none, half, two = (embed(f"a (b:{w}) c") for w in (1, 0, 0.5, 2))
    torch.testing.assert_close(half, (one + none) / 2)
    torch.testing.assert_close(two, 2 * one - none)
    assert [i for i in range(16) if not torch.equal(one[i], two[i])] == [2]
    pictures = [
        paint(pipe, [f"a (b:{w}) c"], [0], num_inference_steps=2)[0].tobytes() for w in (1, 2)
    ]
    assert pictures[0] != pictures[1]


def test_two_text_encoders_read_weights_and_windows(tiny_pipeline):
    pipe = load_base(str(tiny_pipeline("sdxl")))
    plain = pipe.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False)
    given = encode_prompts(pipe, ["(a cat:1.0)", "a cat, " * 3])
    length = plain[0].shape[1]
    windows = given["prompt_embeds"].shape[1] // length
    assert windows > 1
    torch.testing.assert_close(given["prompt_embeds"][:1, :length], plain[0])
    torch.testing.assert_close(given["pooled_prompt_embeds"][:1], plain[2])
    pictures = [
        paint(pipe, [text], [0], num_inference_steps=1)[0].tobytes()
        for text in ("(a:1) b", "(a:2) b")
    ]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
@pytest.mark.parametrize(
    ("ours", "compels"), [("a (b:1.4)", "a (b)1.4"), ("((a)) b", "(a)1.21 b"), (r"\(a\)", r"\(a\)")]
)
def test_brackets_are_a1111s_and_embeddings_are_compels(tiny_pipeline, kind, ours, compels):
    pipe = load_base(str(tiny_pipeline(kind)))
    own = (CompelForSDXL if kind == "sdxl" else CompelForSD)(pipe)(compels)
    torch.testing.assert_close(embed_prompt(pipe, ours).context, own.embeds)


@pytest.mark.parametrize("text", ["", "a", "a cat"])
def test_encoders_that_mask_their_padding_read_as_their_pipeline_does(text):
    pipe = build_pipeline()
    pipe.text_encoder.config.use_attention_mask = True
    own = pipe.encode_prompt(text, "cpu", 1, False)[0]
    assert torch.equal(embed_prompt(pipe, text).context, own)
    pipe.text_encoder.config.use_attention_mask = False
    assert not torch.equal(embed_prompt(pipe, text).context, own)
