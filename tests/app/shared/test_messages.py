"""Every error has one sentence on the page: escaped, and without what is the server's own."""

import asyncio

import gradio as gr
import pytest
from gradio.exceptions import InvalidPathError
from PIL import UnidentifiedImageError
from sdatoms_app.shared.messages import (
    AnsweringBlocks,
    answer_errors,
    draw_error,
    show_errors,
)

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own warnings


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AtomError("there is no <b>file</b>"), "there is no &lt;b&gt;file&lt;/b&gt;."),
        (MemoryError(), "the machine&#x27;s memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate 9 bytes"), "memory is full"),
        (
            OSError(28, "No space left on device", "/home/me/pictures"),
            "write &#x27;pictures&#x27;: No",
        ),
        (AtomError("'/home/me/x.png' is no picture"), "&#x27;x.png&#x27; is no picture."),
        (InvalidPathError("Cannot move /home/me/x"), "a file came that was not uploaded"),
        (UnidentifiedImageError("in /home/me/x"), "a file came that is no picture"),
        (AtomError("\ud800 is no name"), "? is no name"),
        (RuntimeError("size of /home/me"), "an error of the app (RuntimeError); the server"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "said",
)
def test_an_error_is_one_sentence_that_tells_nothing_of_the_server(error, said, capsys):
    note = draw_error(error)
    assert said in note and note.count("role=") == 1
    assert "/home/me" not in note and "<b>" not in note
    assert ("size of /home/me" in capsys.readouterr().err) == ("size of" in str(error))


@pytest.mark.parametrize("wrap", [show_errors, answer_errors])
@pytest.mark.parametrize("error", [KeyError("secret"), ZeroDivisionError(), OverflowError("x")])
def test_what_nobody_foresaw_is_a_sentence_too_and_the_log_says_more(wrap, error, capsys):
    def fail(name: str = "") -> str:
        raise error

    with pytest.raises(gr.Error, match=type(error).__name__) as caught:
        wrap(fail)("x")
    assert "secret" not in caught.value.message and not caught.value.print_exception
    log = capsys.readouterr().err
    assert "Traceback" in log and "in fail" in log


def test_an_error_that_is_gradios_already_stays():
    def fail() -> None:
        raise gr.Error("mine")

    with pytest.raises(gr.Error, match="mine"):
        answer_errors(fail)()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "0 values came; this takes 1"),
        ([5], "an error of the app"),
        ([{"path": 5, "meta": 5}], "an error of the app"),
    ],
)
def test_what_gradio_refuses_by_itself_is_a_sentence(inputs, said):
    with AnsweringBlocks() as blocks:
        gr.Button().click(str, gr.File(), gr.Textbox())
    event = next(iter(blocks.fns.values()))
    with pytest.raises(gr.Error, match=said):
        asyncio.run(blocks.process_api(block_fn=event, inputs=inputs))
