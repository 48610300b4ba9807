"""What settings cost is measured once, by the trainer itself."""

from sdatoms_app.train.measure import Measurements, describe_facts
from tiny.pictures import draw
from tiny.pipelines import save_base


def test_measuring_is_done_once_and_told_in_words(tmp_path):
    base = str(save_base(tmp_path / "base"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw(pictures / "a.png")
    settings = {"pretrained_model_name_or_path": base, "max_train_steps": 10}
    measured = Measurements(tmp_path / "measured.json")
    assert measured.find(settings) is None
    facts = measured.measure(settings, pictures)
    assert float(facts["minutes"].split()[0]) >= 0 and "GiB" in facts["memory"]
    assert Measurements(tmp_path / "measured.json").find(settings) == facts
    assert measured.measure(settings, tmp_path / "gone") == facts
    assert measured.find(settings | {"instance_prompt": "another"}) == facts
    assert measured.find(settings | {"max_train_steps": 11}) is None
    assert "min" in describe_facts(facts) and "bytes" in describe_facts(facts)
