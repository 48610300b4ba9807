"""The adapters of the Generate tab: chosen from a list or from cards, one row each.

A row has a switch, a strength, factors by block as sliders and as text, and a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from sdatoms import AtomError
from sdatoms.models.families import BLOCK_NAMES
from sdatoms_app.generate.blocks import BLOCK_SCRIPT, draw_blocks, set_block
from sdatoms_app.generate.cards import CARD_SCRIPT, draw_cards, find_prompt
from sdatoms_app.generate.form import ROW
from sdatoms_app.shared.events import QUIET
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.orders import MAX_ADAPTERS
from sdatoms_app.studio.studio import Studio

__all__ = [
    "AdapterRows",
]

NUMBERS = tuple(ROW)


class Row(NamedTuple):
    """The components of one row."""

    group: gr.Group
    enabled: gr.Checkbox
    strength: gr.Slider
    trigger: gr.Button
    down: gr.Slider
    mid: gr.Slider
    up: gr.Slider
    by_block: gr.Textbox
    schedule: gr.Textbox
    table: gr.HTML


class AdapterRows:
    """Lays the rows out; call inside `gr.Blocks`, then `wire`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.order = gr.State([])
        """Ids of the files in the rows, first row first."""
        self.chosen = gr.Dropdown(
            label="Adapters",
            info=f"Atom files and LoRAs, {MAX_ADAPTERS} at most; their order does not matter.",
            choices=self.list_choices(),
            value=[],
            multiselect=True,
            max_choices=MAX_ADAPTERS,
            elem_id="atoms",
        )
        self.rows = [self._build_row(k) for k in range(MAX_ADAPTERS)]
        with gr.Accordion("Browse adapters", open=True, elem_id="browse"):
            self.cards = gr.HTML(self.draw([]), js_on_load=CARD_SCRIPT, elem_id="cards")
            self.refresh = gr.Button("Refresh list", size="sm", elem_id="refresh")

    def _build_row(self, number: int) -> Row:
        def slide(name: str, label: str) -> gr.Slider:
            return gr.Slider(
                -1, 2, value=1.0, step=0.05, label=label, elem_id=f"{name}-{number}", min_width=120
            )

        with gr.Group(visible=False, elem_classes="adapter-row") as group:
            with gr.Row(equal_height=True):
                enabled = gr.Checkbox(
                    True, label="On", elem_id=f"enabled-{number}", min_width=110, scale=1
                )
                trigger = gr.Button("", size="sm", elem_id=f"trigger-{number}", min_width=100)
            strength = slide("strength", "Strength")
            with gr.Accordion("Strength by block and step", open=False, elem_id=f"blocks-{number}"):
                with gr.Row():
                    factors = [slide(block, f"× {block}") for block in BLOCK_NAMES]
                table = gr.HTML("", js_on_load=BLOCK_SCRIPT, elem_id=f"table-{number}")
                by_block = gr.Textbox(
                    value="",
                    label="By block, exactly",
                    info="Blocks, module paths or patterns; the last one that fits counts.",
                    placeholder="down.1=0.5, mid=0, *attn2*=0.8",
                    max_lines=4,
                    elem_id=f"by-block-{number}",
                )
                schedule = gr.Textbox(
                    value="",
                    label="Over the steps",
                    info="Factors, and fractions of the steps; 0 to 1 until 0.4 is a ramp.",
                    placeholder="0 until 0.2, then 1",
                    max_lines=2,
                    elem_id=f"schedule-{number}",
                )
        down, mid, up = factors
        return Row(group, enabled, strength, trigger, down, mid, up, by_block, schedule, table)

    @property
    def inputs(self) -> list[Any]:
        """What `read` reads: the order, then the numbers of every row."""
        return [self.order, *(getattr(row, name) for row in self.rows for name in NUMBERS)]

    @property
    def outputs(self) -> list[Any]:
        """What `show` updates."""
        return [self.chosen, self.order, self.cards, *(part for row in self.rows for part in row)]

    def read(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows as settings, from the values of `inputs`."""
        order, numbers = values[0] or [], values[1:]
        width = len(NUMBERS)
        return [
            {"id": id, **dict(zip(NUMBERS, numbers[k * width : (k + 1) * width], strict=True))}
            for k, id in enumerate(order)
        ]

    def show(self, rows: Sequence[dict[str, Any]]) -> list[Any]:
        """Updates of `outputs` that show these rows, and the list as it is now."""
        rows = rows[:MAX_ADAPTERS]
        ids = [row["id"] for row in rows]
        updates: list[Any] = [
            gr.Dropdown(choices=self.list_choices(ids), value=ids),
            ids,
            self.draw(ids),
        ]
        for row in rows:
            trigger = self.find_trigger(row["id"])
            updates += [
                gr.Group(visible=True),
                gr.Checkbox(value=row["enabled"], label=row["id"]),
                gr.Slider(value=row["strength"], label=f"Strength of {row['id']}"),
                gr.Button(f"Insert “{trigger}”", visible=bool(trigger)),
                *(gr.Slider(value=row[b], label=f"× {b} blocks") for b in BLOCK_NAMES),
                row["by_block"],
                row["schedule"],
                draw_blocks(self.find_blocks(row["id"]), row["by_block"]),
            ]
        for _ in range(MAX_ADAPTERS - len(rows)):
            updates += [gr.Group(visible=False), *(gr.skip() for _ in range(len(Row._fields) - 1))]
        return updates

    def list_choices(self, more: Sequence[str] = ()) -> list[tuple[str, str]]:
        """The dropdown's choices: files by label, and rows that hold a checkpoint."""
        choices = [(entry.label, entry.id) for entry in self.studio.library.list_adapters()]
        listed = {id for _, id in choices}
        return choices + [(id, id) for id in more if id not in listed]

    def draw(self, ids: Sequence[str]) -> str:
        """The cards, those of `ids` marked."""
        listed = self.studio.library.list_adapters()
        return draw_cards([(entry, self.studio.judge(entry)) for entry in listed], ids)

    def find_trigger(self, id: str) -> str:
        try:
            return self.studio.library.find(id).trigger
        except AtomError:
            return ""

    def find_blocks(self, id: str) -> tuple[tuple[str, int], ...]:
        """The blocks of a row's file, and in how many layers it changes each."""
        try:
            return self.studio.library.find(id).blocks
        except AtomError:
            return ()

    def choose(self, ids: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Show rows for `ids`; a file that stays keeps its numbers."""
        kept = {row["id"]: row for row in self.read(values)}
        return self.show([kept.get(id, {"id": id, **ROW}) for id in ids])

    def try_out(self, id: str) -> list[Any]:
        """The prompt to try a listed file with, then what shows it alone, at strength 1.

        Raises:
            AtomError: it is not listed.
        """
        prompt = find_prompt(self.studio.library.find(id))
        return [prompt, *self.show([{"id": id, **ROW}])]

    def wire(self, prompt: gr.Textbox) -> None:
        """Connect list, cards and rows; triggers go into `prompt`."""

        def pick(ids: list[str], *values: Any) -> list[Any]:
            return [gr.skip(), *self.choose(ids, values)[1:]]  # the list goes on being chosen from

        @show_errors
        def press(text: str, event: gr.EventData, *values: Any) -> list[Any]:
            data = event._data if isinstance(event._data, dict) else {}
            id, action = data.get("id"), data.get("action")
            ids = [row["id"] for row in self.read(values)]
            if action == "trigger":
                words = insert_words(text, self.find_trigger(str(id)))
                return [words, *(gr.skip() for _ in self.outputs)]
            if action == "add" and id not in ids:
                if len(ids) == MAX_ADAPTERS:
                    raise AtomError(f"at most {MAX_ADAPTERS} adapters at once; remove one first")
                ids.append(str(id))
            if action == "remove":
                ids = [other for other in ids if other != id]
            listed = {value for _, value in self.list_choices(ids)}
            return [gr.skip(), *self.choose([id for id in ids if id in listed], values)]

        def insert(text: str, order: list[str], number: int) -> str:
            return insert_words(text, self.find_trigger(order[number]))

        self.chosen.input(
            pick,
            [self.chosen, *self.inputs],
            self.outputs,
            trigger_mode="always_last",  # two files picked at once are two files
            **QUIET,
        )
        self.cards.click(press, [prompt, *self.inputs], [prompt, *self.outputs], **QUIET)
        self.refresh.click(
            lambda *values: self.show(self.read(values)), self.inputs, self.outputs, **QUIET
        )
        for number, row in enumerate(self.rows):
            self.wire_blocks(row, number)
            row.trigger.click(
                lambda text, order, number=number: insert(text, order, number),
                [prompt, self.order],
                prompt,
                **QUIET,
            )

    def wire_blocks(self, row: Row, number: int) -> None:
        """Sliders of the table write into the text, and the text moves the sliders."""

        def look(order: list[str], text: str) -> Any:
            held = number < len(order or [])  # a row that was just taken away asks too
            return draw_blocks(self.find_blocks(order[number]), text) if held else gr.skip()

        @show_errors
        def move(order: list[str], text: str, event: gr.EventData) -> list[str]:
            data = event._data if isinstance(event._data, dict) else {}
            blocks = self.find_blocks(order[number])
            text = set_block(text, str(data.get("block")), data.get("number"), blocks)
            return [text, draw_blocks(blocks, text)]

        row.table.click(move, [self.order, row.by_block], [row.by_block, row.table], **QUIET)
        row.by_block.change(  # `input` knows key presses alone, not what is pasted
            look,
            [self.order, row.by_block],
            row.table,
            trigger_mode="always_last",
            **QUIET,
        )


def insert_words(text: str, words: str) -> str:
    """The prompt with the trigger in it, once."""
    if not words or words.lower() in text.lower():
        return text
    return f"{text.rstrip()} {words}".strip() if text.strip() else words
