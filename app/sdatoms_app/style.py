"""The look of the app: system fonts, the atoms' own orange and blue; light, dark, a phone."""

from __future__ import annotations

from gradio import themes

__all__ = ["HEADER", "SMALL_PICTURES", "STYLE", "THEME"]

INK = themes.Color(
    *("#f7f8fa", "#eef0f4", "#dfe3ea", "#c6ccd8", "#98a1b3", "#626b7d", "#4b5364", "#363d4c"),
    *("#222836", "#161b26", "#0e121a"),
    name="ink",
)
"""Greys with a little blue in them."""
THEME = themes.Default(
    primary_hue="orange",
    secondary_hue="sky",
    neutral_hue=INK,
    radius_size="lg",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(  # every text at least 4.5 : 1 on its ground
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    background_fill_primary_dark="*neutral_900",
    background_fill_secondary_dark="*neutral_950",
    block_background_fill_dark="*neutral_900",
    border_color_primary_dark="*neutral_700",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
    block_title_text_weight="600",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_300",
    checkbox_border_radius="*radius_sm",
    color_accent="*primary_600",
    color_accent_soft="*primary_50",
    color_accent_soft_dark="*neutral_800",
    link_text_color="*secondary_700",
    link_text_color_dark="*secondary_400",
    slider_color="*primary_600",
    slider_color_dark="*primary_500",
    input_background_fill_dark="*neutral_800",
    button_secondary_background_fill_dark="*neutral_800",
    button_secondary_background_fill_hover_dark="*neutral_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
)

HEADER = """
<header>
  <svg viewBox="0 0 34 34" width="40" height="40" aria-hidden="true">
    <rect width="10" height="10" rx="2" fill="#ca5814"/>
    <rect x="12" width="10" height="10" rx="2" fill="#ca5814" opacity=".45"/>
    <rect x="24" width="10" height="10" rx="2" fill="#2166ac" opacity=".3"/>
    <rect y="12" width="10" height="10" rx="2" fill="#ca5814" opacity=".45"/>
    <rect x="12" y="12" width="10" height="10" rx="2" fill="#2166ac" opacity=".55"/>
    <rect x="24" y="12" width="10" height="10" rx="2" fill="#2166ac"/>
    <rect y="24" width="10" height="10" rx="2" fill="#2166ac" opacity=".3"/>
    <rect x="12" y="24" width="10" height="10" rx="2" fill="#2166ac"/>
    <rect x="24" y="24" width="10" height="10" rx="2" fill="#ca5814" opacity=".6"/>
  </svg>
  <div>
    <h1>sdatoms</h1>
    <p>Teach Stable Diffusion your subject or style from a handful of pictures; what it learns is
    one small file of filter atoms, put on and taken off without a trace.</p>
  </div>
</header>
"""
"""What this is, in one sentence."""

STYLE = """
.gradio-container .app {padding: 16px clamp(12px, 3vw, 32px) !important}
#title, #title .html-container {padding: 0 !important}
#title header {display: flex; gap: 14px; align-items: center}
#title svg {flex: none}
#title h1 {margin: 0; font-size: 24px; line-height: 1.2; letter-spacing: -.01em}
#title p {margin: 2px 0 0; max-width: 80ch; color: var(--body-text-color-subdued)}
#generate-grid {display: grid; gap: var(--layout-gap); align-items: start;
  grid-template-columns: minmax(320px, 2fr) minmax(320px, 3fr); grid-template-rows: auto 1fr;
  grid-template-areas: "ask outcome" "details outcome"}
#ask {grid-area: ask} #details {grid-area: details}
#outcome {grid-area: outcome; position: sticky; top: 8px}
#ask, #outcome, #details {min-width: 0 !important}
@media (max-width: 760px) {
  #outcome {position: static}
  #generate-grid {grid-template-columns: minmax(0, 1fr); grid-template-rows: auto;
    grid-template-areas: "ask" "outcome" "details"}
}
.picture img {width: 100%; height: 100%; object-fit: contain}
ul.cards {list-style: none; margin: 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr))}
li.card {display: flex; gap: 10px; align-items: center; padding: 8px; border-radius: 8px;
  margin: 0 !important;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color)}
li.card.picked {border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent)}
li.card img, li.card .blank {width: 64px; height: 64px; flex: none; border-radius: 6px;
  object-fit: cover; margin: 0}
li.card .blank {display: grid; place-items: center; font-size: 28px;
  background: var(--background-fill-secondary); color: var(--body-text-color-subdued)}
li.card .buttons {display: flex; flex-wrap: wrap; gap: 4px; justify-content: flex-end}
li.card .buttons button {margin: 0; height: 30px; line-height: 1; border: 0}
button.stop:disabled {background: var(--button-secondary-background-fill) !important;
  color: var(--body-text-color-subdued) !important}
ul.examples {grid-template-columns: repeat(auto-fill, minmax(136px, 1fr))}
ul.examples li.card {flex-direction: column; align-items: stretch; gap: 6px}
ul.examples li.card img, ul.examples li.card .blank {width: 100%; height: auto; aspect-ratio: 1}
ul.examples .buttons {justify-content: stretch}
ul.examples .buttons button {flex: 1}
.cards-head {margin: 2px 0 8px !important}
ul.cards + .cards-head {margin-top: 14px !important}
li.card .about {display: flex; flex-direction: column; gap: 2px; align-items: flex-start;
  min-width: 0; flex: 1; font-size: 13px; line-height: 1.35}
li.card strong {max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
li.card button {border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--button-secondary-background-fill); color: var(--body-text-color);
  cursor: pointer; padding: 4px 10px; font-size: 13px}
li.card button.trigger {padding: 0 6px; max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap}
li.card button:hover {background: var(--button-secondary-background-fill-hover)}
li.card button.try {background: var(--button-primary-background-fill); border-color: transparent;
  color: var(--button-primary-text-color); font-weight: 600; white-space: nowrap}
li.card button.try:hover {background: var(--button-primary-background-fill-hover)}
li.card button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px}
ul.subjects {list-style: none; margin: 6px 0 0; padding: 0; display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(80px, 1fr))}
ul.subjects li {list-style: none !important; margin: 0 !important}
ul.subjects button {width: 100%; display: flex; flex-direction: column; align-items: center;
  gap: 4px; margin: 0; padding: 8px 4px; border-radius: 8px; cursor: pointer; font-size: 13px;
  font-weight: 400; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); color: var(--body-text-color)}
ul.subjects button:hover {border-color: var(--color-accent)}
ul.subjects button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px}
ul.subjects img {width: 64px; height: 64px; margin: 0; border-radius: 6px}
.blocks {display: grid; gap: 4px 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr))}
.blocks label.block {display: grid; gap: 6px; align-items: center; font-size: 13px;
  grid-template-columns: 8.5em 5em minmax(50px, 1fr) 2.6em}
.blocks label.block span {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.blocks label.block input {min-width: 0; accent-color: var(--color-accent)}
.blocks label.block output {text-align: right}
#anatomy-refresh, #anatomy-save, #train-take, #history-look {align-self: center}
.gallery-container .grid-container.pt-6 {padding-top: 24px; grid-auto-rows: auto;
  grid-template: none / repeat(auto-fill, minmax(90px, 1fr))}
#result .grid-container.pt-6 {grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  max-width: 700px; margin: auto}
#result .grid-container .thumbnail-item {aspect-ratio: 1 !important; height: auto}
#result .grid-container .caption-label {font-size: 13px}
#singles .grid-container.pt-6, #anatomy-painted .grid-container.pt-6 {
  grid-template-columns: repeat(auto-fill, minmax(140px, 1fr))}
.gallery-container .caption-label {max-width: 100%; right: 0; bottom: 0; padding: 1px 5px;
  font-size: 11px; white-space: normal}
.secondary-wrap input[role=combobox] {text-overflow: ellipsis; padding-right: 22px}
.gallery-container .preview::before {opacity: 1}
#result .empty, #grid .empty, #train-gallery .empty, #past .empty, #run-samples .empty {
  flex-direction: column}
#result .empty::after {content: "Your pictures appear here"}
#grid .empty::after {content: "The grid appears here"}
#train-gallery .empty::after {content: "Your pictures as the trainer will see them"}
#past .empty::after {content: "Every picture made here is kept here"}
#run-samples .empty::after {content: "Samples appear here while it trains"}
.empty::after {color: var(--body-text-color-subdued); font-size: 14px; padding: 4px 12px}
[data-testid=status-tracker]:has(> .error) {display: none}
#result .preview:has(.thumbnails) {padding-bottom: 56px}
#result .media-button {flex: 1; min-height: 0; height: auto !important}
#result caption {display: block; flex: none; max-width: 100%; white-space: normal}
#grid img {padding-top: 30px; box-sizing: border-box}
.info-text code {color: var(--body-text-color)}
.faint, .hint {color: var(--body-text-color-subdued)}
.hint {margin: 4px 0 0; font-size: 13px}
.fit {font-size: 12px}
.fit::before {content: "● "}
.fit.fits::before {color: #16a34a}
.fit.other::before {color: #d97706}
.fit.not::before {color: #dc2626}
.progress {height: 8px; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary)}
.progress > div {height: 100%; background: var(--color-accent); transition: width .2s}
.note {color: var(--body-text-color); overflow-wrap: anywhere}
.note ul {margin: 4px 0 0; padding-left: 20px}
.note.alarm {border-left: 3px solid #d97706; padding-left: 10px}
.run-list .wrap {flex-direction: column; max-height: 70vh; overflow: auto}
.run-list .wrap label {overflow-wrap: anywhere}
#train-gallery .grid-wrap, #run-samples .grid-wrap, #singles .grid-wrap,
#anatomy-painted .grid-wrap {min-height: 0; max-height: none; height: auto}
footer .divider {display: none}
#run-samples .grid-container.pt-6 {grid-template-columns: repeat(8, minmax(0, 1fr))}
@media (max-width: 480px) {
  #run-samples .grid-container.pt-6 {grid-template-columns: repeat(4, minmax(0, 1fr))}
  #result, #live {height: 330px !important}
  #title svg {width: 32px; height: 32px}
  #tabs button[role=tab] {padding: 0 9px}
}
"""

SMALL_PICTURES = """
li.card img, ul.subjects img, .picture img, #slider img, .gallery-container img {
  image-rendering: pixelated}
#result .media-button img, #live img {max-width: 320px; max-height: 320px; margin: auto}
"""
"""For a base whose pictures are shown larger than they are: sharp, five times at most."""
