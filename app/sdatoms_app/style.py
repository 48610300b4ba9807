"""The look of the app: system fonts, Gradio's own colours (light and dark), a phone's width."""

from __future__ import annotations

from gradio import themes

__all__ = ["STYLE", "THEME"]

THEME = themes.Default(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(  # the default greys and reds are too faint to read
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_cancel_background_fill="#dc2626",
    button_cancel_background_fill_hover="#b91c1c",
)

STYLE = """
.gradio-container .app {padding: 16px clamp(12px, 3vw, 32px) !important}
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
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color)}
li.card.picked {border-color: var(--color-accent); box-shadow: 0 0 0 1px var(--color-accent)}
li.card img, li.card .blank {width: 64px; height: 64px; flex: none; border-radius: 6px;
  object-fit: cover; margin: 0}
li.card .blank {display: grid; place-items: center; font-size: 28px;
  background: var(--background-fill-secondary); color: var(--body-text-color-subdued)}
li.card .about {display: flex; flex-direction: column; gap: 2px; align-items: flex-start;
  min-width: 0; flex: 1; font-size: 13px; line-height: 1.35}
li.card strong {max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
li.card button {border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--button-secondary-background-fill); color: var(--body-text-color);
  cursor: pointer; padding: 4px 10px; font-size: 13px}
li.card button.trigger {padding: 0 6px; max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap}
li.card button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px}
.blocks {display: grid; gap: 4px 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr))}
label.block {display: grid; grid-template-columns: 8.5em 5em minmax(50px, 1fr) 2.6em; gap: 6px;
  align-items: center; font-size: 13px}
label.block span {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
label.block input {min-width: 0; accent-color: var(--color-accent)}
label.block output {text-align: right}
#anatomy-refresh, #anatomy-save, #train-take, #history-look {align-self: center}
.gallery-container .grid-container.pt-6 {padding-top: 24px; grid-auto-rows: auto;
  grid-template: none / repeat(auto-fill, minmax(90px, 1fr))}
#singles .grid-container.pt-6, #anatomy-painted .grid-container.pt-6 {
  grid-template-columns: repeat(auto-fill, minmax(140px, 1fr))}
.gallery-container .caption-label {max-width: 100%; right: 0; bottom: 0; padding: 1px 5px;
  font-size: 11px; white-space: normal}
.secondary-wrap input[role=combobox] {text-overflow: ellipsis; padding-right: 22px}
.gallery-container .preview::before {opacity: 1}
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
}
"""
