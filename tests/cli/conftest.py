"""How a command refuses."""

import pytest

from sdatoms.cli.main import main


@pytest.fixture
def refuse(capsys):
    """A command ends with exit code 2 and one line on standard error, which says all of
    `said`; returns what it printed before."""

    def call(words, *said):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert stop.value.code == 2, words
        assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
        for sentence in said:
            assert sentence in err, err
        return out

    return call
