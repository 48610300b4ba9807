"""What the Train tab does, below its page and over HTTP."""

import pytest
from gradio_client import handle_file
from sdatoms_app.train.page import TrainPage

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings


def test_pictures_are_judged_over_http(client, pictures):
    answer = client.predict([handle_file(p) for p in pictures], api_name="/check_pictures")
    assert any("2 fine, 1 tiny" in str(part) for part in answer)
    assert any("cannot be read" in str(part) for part in answer)


def test_listed_folders_are_offered(studio):
    page = TrainPage(studio, [])
    token, crops, verdict, *_ = page.add_folder("subjects/clay", "")
    assert len(crops) == 8 and verdict.startswith("8 fine")
    assert all(picture.caption for picture in page.open(token).list())
    with pytest.raises(Exception, match="no folder"):
        page.add_folder("../../etc", token)


def test_a_training_is_queued_only_with_pictures_and_a_prompt(studio):
    page = TrainPage(studio, [])
    values = dict.fromkeys(page.names) | {"instance_prompt": "a dog"}
    with pytest.raises(Exception, match="no pictures"):
        page.start("", *values.values())
    values["instance_prompt"] = ""
    with pytest.raises(Exception, match="prompt of the pictures is empty"):
        page.start("", *values.values())
    values |= {"instance_prompt": "a dog", "with_prior_preservation": True}
    with pytest.raises(Exception, match="needs class_prompt"):
        page.start("", *values.values())
    assert page.queue.list() == []
