"""Cards of atom files: what files say stays text."""

from sdatoms_app.generate.cards import clean_thumbnail, draw_cards


def test_cards_show_hostile_texts_as_text(studio):
    entries = studio.library.list()
    html = draw_cards([(entry, None) for entry in entries], ["dog"])
    assert "<img src=x" not in html and "&lt;b&gt;ink&lt;/b&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 2 and 'class="card picked"' in html
    for uri in ("javascript:alert(1)", "data:text/html;base64,PHA+", "data:image/png;base64,AAAA"):
        assert clean_thumbnail(uri) == ""
    assert "drop one here" in draw_cards([], [])
