"""The tokenizer made from the bundled list of merges is CLIP's."""

from sdatoms.models.vocabulary import build_tokenizer, read_merges


def test_the_tokenizer_gives_the_published_numbers():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77


def test_every_byte_is_read_and_written_back():
    tokenizer = build_tokenizer()
    text = "café 日本 naïve — 😀"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(read_merges()) == 48_894 and read_merges()[0] == ("i", "n")


def test_the_window_is_filled_as_each_encoder_was_trained():
    assert build_tokenizer()("a", padding="max_length").input_ids[2:] == [49407] * 75
    assert build_tokenizer("!")("a", padding="max_length").input_ids[3:] == [0] * 74
