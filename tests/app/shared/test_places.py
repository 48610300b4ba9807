"""What visitors read names files by their names alone, wherever on the server they lie."""

import gradio as gr
import pytest
from sdatoms_app.shared.places import hide_folders

pytestmark = pytest.mark.filterwarnings("default")  # gradio's own warnings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot identify '/tmp/gradio/ab12/x.png'", "cannot identify 'x.png'"),
        ('no "/home/me/it\'s mine/x y.png" here', 'no "x y.png" here'),
        ("cut short: '/tmp/gradio/ab12/x…", "cut short: 'x…"),
        ("[Errno 2] nothing there: /srv/a/b.txt", "[Errno 2] nothing there: b.txt"),
        ("'/a/b/c' is not '/d/e/'", "'c' is not 'e'"),
        (r"no '/srv/data/o\'neil/x.png' there", "no 'x.png' there"),
        ("the app's folder '/home/jane doe/x/y.png'", "the app's folder 'y.png'"),
        ('File "/srv/app/x.py", line 3', 'File "x.py", line 3'),
    ],
)
def test_of_a_path_the_name_is_left(text, shown):
    assert hide_folders(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "send it to https://example.org/atoms/x.png",
        "a path such as /atoms, or 1/2, or down/mid/up, or '/'",
        "the run 'a/b/c' is not listed",
        "no base 'owner/name' and 'a'/'b'",
    ],
)
def test_what_is_no_path_of_the_server_stays(text):
    assert hide_folders(text) == text


def test_a_damaged_upload_is_named_without_its_folder(endpoints, tmp_path):
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"abc")
    file = {"path": str(folder / "x.png"), "meta": {"_type": "gradio.FileData"}}
    for name, values in {
        "add_atoms": {"path": file},
        "read_picture": {"path": file},
        "generate": {"prompt": "cat", "image": file},
        "train_pictures": {"files": [file], "instance_prompt": "a sks cat"},
    }.items():
        with pytest.raises(gr.Error, match=r"x\.png") as caught:
            endpoints[name](**values)
        assert "secret-folder" not in caught.value.message, name
    shown = endpoints["check_pictures"]([file], "")
    assert "x.png" in shown[3] and "secret-folder" not in shown[3]
