"""Cards of atom files: what files say stays text."""

from dataclasses import replace

from sdatoms_app.generate.cards import clean_thumbnail, draw_cards, find_prompt


def test_cards_show_hostile_texts_as_text(studio):
    entries = studio.library.list()
    html = draw_cards([(entry, None) for entry in entries], ["dog"])
    assert "<img src=x" not in html and "&lt;b&gt;ink&lt;/b&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 2 and 'class="card picked"' in html
    for uri in ("javascript:alert(1)", "data:text/html;base64,PHA+", "data:image/png;base64,AAAA"):
        assert clean_thumbnail(uri) == ""
    assert "Train tab" in draw_cards([], [])


def test_examples_have_a_list_of_their_own_and_a_prompt(studio):
    ink = studio.library.find("ink")
    example = replace(ink, id="examples/ink", prompt="a cat in <b>ink</b>", example=True)
    html = draw_cards([(ink, None), (example, None)], [])
    own, came = html.split('class="cards examples"')
    assert "Examples" in own and 'data-id="examples/ink"' in came and "example ·" in came
    assert find_prompt(example) == "a cat in <b>ink</b>" and find_prompt(ink) == ink.trigger
    nameless = replace(ink, trigger="", prompt="")
    assert "Try it" in html and "Try it" not in draw_cards([(nameless, None)], [])
