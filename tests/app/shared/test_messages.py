"""Every error has one sentence on the page: escaped, and without what is the server's own."""

import pytest
from sdatoms_app.shared.messages import draw_error

from sdatoms import AtomError


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
        (RuntimeError("size of /home/me"), "an error of the app (RuntimeError); the server"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "said",
)
def test_an_error_is_one_sentence_that_tells_nothing_of_the_server(error, said, capsys):
    note = draw_error(error)
    assert said in note and note.count("role=") == 1
    assert "/home/me" not in note and "<b>" not in note
    assert ("size of /home/me" in capsys.readouterr().err) == ("size of" in str(error))
