"""A new word is learnt, saved in the same file, added by loading and taken out to the bit."""

import pytest
import torch
from safetensors.torch import save_file

import sdatoms
from sdatoms.adapters.export import convert_to_diff, convert_to_lora
from sdatoms.cli.main import main
from sdatoms.diffusion.open import load_base
from sdatoms.files.compose import compose
from sdatoms.training.trainer import Trainer


@pytest.fixture
def word_config(train_config):
    def make(kind="sd", **changes):
        flags = {"train_text_encoder_ti": True, "instance_prompt": "a <new> cat"}
        return train_config(kind, **{**flags, **changes})

    return make


@pytest.fixture
def word_file(word_config, tmp_path):
    def make(kind="sd", **changes):
        trainer = Trainer(word_config(kind, **changes))
        trainer.take_step()
        return trainer, trainer.pack().save(tmp_path / "word.safetensors")

    return make


def read_words(pipe):
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    tokenizers = [pipe.tokenizer, getattr(pipe, "tokenizer_2", None)]
    tables = [e.get_input_embeddings().weight.clone() for e in encoders if e]
    return tables, [t._tokenizer.to_str() for t in tokenizers if t]


def read_rows(pipe):
    """Embedding tables and the tokens of the new word."""
    tokenizer = pipe.tokenizer
    yield pipe.text_encoder.get_input_embeddings().weight, tokenizer("<new> cat").input_ids


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_word_is_trained_and_the_rest_of_the_table_is_not(word_config, kind):
    trainer = Trainer(word_config(kind, num_new_tokens_per_abstraction=3))
    assert list(trainer.tokens) == list(trainer.data.text.encoders)
    tables, _ = read_words(trainer.pipe)
    starts = [t.embeddings.detach().clone() for t in trainer.tokens.values()]
    trainer.take_step()
    for tokens, start in zip(trainer.tokens.values(), starts, strict=True):
        assert start.shape == (3, 16)
        assert bool((tokens.embeddings != start).any(1).all())
    for table, kept in zip(read_words(trainer.pipe)[0], tables, strict=True):
        assert torch.equal(table, kept)


def test_the_word_starts_as_its_concept(word_config):
    trainer = Trainer(word_config(initializer_concept="cat"))
    (tokens,) = trainer.tokens.values()
    ids = trainer.pipe.tokenizer("cat", add_special_tokens=False).input_ids
    expected = trainer.pipe.text_encoder.get_input_embeddings().weight[ids[:2]]
    assert torch.equal(tokens.embeddings, expected)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_loading_adds_the_word_and_clearing_takes_it_out_to_the_bit(word_file, kind):
    trainer, path = word_file(kind)
    file = sdatoms.read_atoms(path)
    assert file.metadata["tokens"] == "<new>"
    assert set(file.embeddings) == set(trainer.tokens)
    assert "text_encoder.tokens.embeddings" in file.tensors and file.components == ("unet",)
    pipe = load_base(trainer.config.pretrained_model_name_or_path)
    before = read_words(pipe)
    adapters = sdatoms.load_atoms(pipe, path, name="cat")
    for component, rows in file.embeddings.items():
        tokenizer = getattr(pipe, component.replace("text_encoder", "tokenizer"))
        ids = tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"])
        table = getattr(pipe, component).get_input_embeddings().weight
        assert torch.equal(table[ids], rows)
    with pytest.raises(sdatoms.AtomError, match="'<new>' is already known"):
        sdatoms.load_atoms(pipe, path, name="again")
    adapters.remove("cat")
    after = read_words(pipe)
    assert after[1] == before[1]
    assert all(torch.equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    adapters.load(path, name="cat")  # and in again
    adapters.clear()
    assert read_words(pipe)[1] == before[1]


def test_two_words_are_told_apart(word_file, word_config, tmp_path):
    trainer, path = word_file()
    other = Trainer(word_config(token_abstraction="<dog>", instance_prompt="a <dog>", seed=1))
    other.take_step()
    pipe = load_base(trainer.config.pretrained_model_name_or_path)
    adapters = sdatoms.load_atoms(pipe, path, name="one")
    adapters.load(other.pack().save(tmp_path / "other.safetensors"), name="two")
    adapters.remove("one")
    ids = pipe.tokenizer.convert_tokens_to_ids(["<dog>", "<dog>_1"])
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], other.tokens["text_encoder"].embeddings)
    assert "<new>" not in pipe.tokenizer.get_vocab()


def test_exports_say_that_they_leave_the_word_out(word_file, tmp_path, capsys):
    trainer, path = word_file()
    base = trainer.config.pretrained_model_name_or_path
    file, pipe = sdatoms.read_atoms(path), load_base(base, device="cpu")
    words = "the word <new> is left out"
    assert convert_to_diff(file, pipe).left_out.startswith(words)
    assert convert_to_lora(file, pipe, 2).left_out.startswith(words)
    command = ["export", str(path), "--pretrained_model_name_or_path", base]
    lora = [*command, "--format", "lora", "--rank", "2", "--output", str(tmp_path / "lora")]
    main(lora)
    assert words in capsys.readouterr().out
    main([*command, "--format", "pipeline", "--output", str(tmp_path / "baked")])
    assert words not in capsys.readouterr().out
    adapters = sdatoms.load_atoms(pipe, path)
    kept = load_base(str(tmp_path / "baked"), device="cpu")
    for (table, rows), (other, more) in zip(read_rows(pipe), read_rows(kept), strict=True):
        assert torch.equal(table, other) and rows == more
    adapters.clear()


@pytest.mark.parametrize("word", ["TOK", "sks", "<A>", "<a b>", "<>"])
def test_words_that_may_be_missed_or_found_in_others_are_refused(word_config, word):
    with pytest.raises(sdatoms.AtomError, match="it takes a word in lower case and angle"):
        word_config(token_abstraction=word, instance_prompt=f"a {word}")


def test_a_word_must_stand_in_the_prompt(word_config):
    with pytest.raises(sdatoms.AtomError, match="'<new>' must stand in --instance_prompt"):
        word_config(instance_prompt="a cat")


def test_sums_of_files_with_words_are_refused(word_file):
    file = sdatoms.read_atoms(word_file()[1])
    with pytest.raises(sdatoms.AtomError, match="file 1 brings the word '<new>'"):
        compose([file])


@pytest.mark.parametrize(
    ("word", "shape", "words"),
    [
        (None, (2, 16), "both or none of embeddings"),
        ("two words", (2, 16), "no word such as <dog>"),
        ("<new>", (2, 16, 1), "no matrices"),
    ],
)
def test_hostile_words_are_refused(word_file, tmp_path, word, shape, words):
    file = sdatoms.read_atoms(word_file()[1])
    metadata = {k: v for k, v in file.metadata.items() if k != "tokens"}
    tensors = {**file.tensors, "text_encoder.tokens.embeddings": torch.zeros(shape)}
    path = tmp_path / "hostile.safetensors"
    save_file(tensors, path, metadata | ({"tokens": word} if word else {}))
    with pytest.raises(sdatoms.AtomError, match=words):
        sdatoms.read_atoms(path)
