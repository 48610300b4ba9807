"""The app as a whole: its endpoints, its flags, and tools for models."""

import asyncio
import json
import re
from pathlib import Path

import gradio as gr
import pytest
from sdatoms_app import app as app_module
from sdatoms_app.app import build_app
from sdatoms_app.app import serve as serve_app

from sdatoms import AtomError

pytestmark = pytest.mark.filterwarnings("default")  # gradio's and uvicorn's own warnings
ENDPOINTS = Path(__file__).parents[1] / "app_endpoints.json"


def list_endpoints(app):
    """What programs may ask for, by name: what it takes, with types and defaults, what it gives."""

    def write(parameter):
        default = f" = {json.dumps(parameter['parameter_default'])}"
        given = default if parameter["parameter_has_default"] else ""
        return f"{parameter['parameter_name']}: {parameter['python_type']['type']}{given}"

    return {
        name.strip("/"): {
            "about": endpoint.get("description", ""),
            "takes": [write(parameter) for parameter in endpoint["parameters"]],
            "gives": [answer["python_type"]["type"] for answer in endpoint["returns"]],
        }
        for name, endpoint in sorted(app.get_api_info()["named_endpoints"].items())
    }


def test_the_endpoints_are_those_written_down(studio):
    """Programs rely on them: whoever changes one changes `app_endpoints.json` on purpose."""
    found = list_endpoints(build_app(studio))
    assert found == json.loads(ENDPOINTS.read_text(encoding="utf-8"))
    for name, endpoint in found.items():
        assert len(endpoint["about"]) > 20, name
        assert not any("param_" in words or "Literal[]" in words for words in endpoint["takes"])


def test_flags_that_do_not_go_together_are_refused(tmp_path, monkeypatch):
    def serve(**flags):
        app_module.serve(base=None, adapters_dir=tmp_path, outputs_dir=tmp_path, **flags)

    with pytest.raises(AtomError, match="takes --auth"):
        serve(share=True)
    with pytest.raises(AtomError, match="drop one of them"):
        serve(share=True, offline=True, auth=["me:secret-word"])
    with pytest.raises(AtomError, match="--models-dir"):
        serve(models_dir=tmp_path / "nothing")
    for port in (-1, 65536, 2**40):
        with pytest.raises(AtomError, match=rf"--port is {port}; it takes 0 to 65535"):
            serve(port=port)
    monkeypatch.setattr(app_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AtomError, match=r"sdatoms\[mcp\]"):
        serve(mcp=True)


def test_tools_do_not_stand_open_beside_a_password(tmp_path):
    """Gradio serves its tools without asking for the app's password."""
    with pytest.raises(AtomError, match="does not go with --auth"):
        serve_app(
            base=None,
            adapters_dir=tmp_path,
            outputs_dir=tmp_path,
            mcp=True,
            auth=["me:secret-word"],
        )


def test_signing_in_elsewhere_is_not_offered(studio):
    """Gradio's OAuth may hand out the server's own token: nothing of it is there."""
    kinds = {type(block).__name__ for block in build_app(studio).blocks.values()}
    assert kinds & {"Button"} and not kinds & {"LoginButton", "FileExplorer"}


def test_a_text_field_that_nobody_touched_is_empty_text(studio):
    """Gradio reads one without a value as None, which became the words of a negative prompt."""
    fields = [b for b in build_app(studio).blocks.values() if isinstance(b, gr.Textbox)]
    asked = [field for field in fields if field.visible and field.interactive is not False]
    assert len(asked) > 30 and not [f.label for f in asked if not isinstance(f.value, str)]


def test_visitors_wait_in_a_queue_that_has_an_end(studio):
    assert build_app(studio)._queue.max_size == 64


def test_the_page_visits_few_parts_at_a_message(studio):
    """At every message of any event the page visits each part that ever had progress to show, and
    for each searches all of them: with those of hidden progress it took seconds (gradio 6.31)."""
    events = [e for e in build_app(studio).config["dependencies"] if e["targets"]]
    quiet = [event for event in events if event["show_progress"] == "hidden"]
    assert len(quiet) > 80 and all(event["show_progress_on"] == [] for event in quiet)
    places = {id for e in events for id in (e["outputs"] if e not in quiet else ())}
    assert len(places) < 60
    opened = [e for e in events if any(kind == "load" for _, kind in e["targets"])]
    assert opened and all(len(event["outputs"]) < 20 for event in opened)


def test_models_use_the_endpoints_as_tools(serve, studio):
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    address = serve(studio, mcp_server=True)

    async def talk():
        async with (
            streamablehttp_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            name = next(name for name in tools if name.endswith("list_bases"))
            return tools, await session.call_tool(name, {})

    tools, answer = asyncio.run(talk())
    painter = next(tool for name, tool in tools.items() if name.endswith("generate"))
    assert "Generate pictures from a prompt" in painter.description
    assert {"prompt", "adapters", "seed"} <= set(painter.inputSchema["properties"])
    assert "tiny" in answer.content[0].text
    assert not [n for n in tools if re.search(r"keep_|choose|look|fill$", n)]  # private ones
