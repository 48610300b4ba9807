"""Build the app and serve it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdatoms_app.security import hide_proxies

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # else importing it asks the network
with hide_proxies():
    import gradio as gr

from starlette.middleware import Middleware

from sdatoms import AtomError
from sdatoms.diffusion.sizes import MAX_SIDE, check_side
from sdatoms.errors import clip
from sdatoms.storage import find_assets
from sdatoms_app.atoms.tab import build_atoms_tab
from sdatoms_app.generate.api import build_generate_api
from sdatoms_app.generate.compare import build_compare_tab
from sdatoms_app.generate.tab import build_generate_tab
from sdatoms_app.runs.tab import build_runs_tab
from sdatoms_app.security import (
    LAST_PORT,
    LoginGuard,
    OriginGuard,
    check_root_path,
    harden,
    keep_loopback_direct,
    read_auth,
)
from sdatoms_app.shared.events import QUIET
from sdatoms_app.shared.html import draw_note
from sdatoms_app.shared.messages import AnsweringBlocks
from sdatoms_app.shared.stream import WAIT_FOR_STREAM
from sdatoms_app.studio.handover import Handover, Policy, watch
from sdatoms_app.studio.library import MAX_UPLOAD_BYTES, Library
from sdatoms_app.studio.studio import Studio
from sdatoms_app.style import HEADER, SMALL_PICTURES, STYLE, THEME
from sdatoms_app.train.page import open_queue
from sdatoms_app.train.tab import build_train_tab

__all__ = ["build_app", "find_port", "launch_settings", "serve"]

CACHE_SECONDS = (3600, 86_400)
"""How often uploads and copies of pictures are looked through, and how old they may grow."""
SMALL_SIDE = 128
"""px of a base whose pictures are shown larger than they are."""
SECONDS = 2.0
"""Between two looks at who has the GPU."""


def build_app(studio: Studio, pictures: Sequence[Path] = ()) -> gr.Blocks:
    """The whole app over one studio; `pictures` are folders that visitors may train on."""
    connect_trainings(studio)
    with AnsweringBlocks(
        title="sdatoms", analytics_enabled=False, delete_cache=CACHE_SECONDS
    ) as app:
        gr.HTML(HEADER, elem_id="title", js_on_load=None, padding=False)
        if studio.handover.lends:
            show_device(studio, app.load)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):  # all in sight on a phone
            with gr.Tab("Generate", id="generate"):
                generate = build_generate_tab(studio, app.load)
            with gr.Tab("Compare", id="compare"):
                build_compare_tab(studio, generate)
            with gr.Tab("Atoms", id="atoms") as atoms:
                build_atoms_tab(studio, app.load, atoms.select)
            with gr.Tab("Train", id="train") as train:
                form = build_train_tab(studio, pictures, train.select)
            with gr.Tab("Runs", id="runs"):
                build_runs_tab(studio, form, generate)
        build_generate_api(studio)
    app.queue(max_size=64, default_concurrency_limit=4)
    return app


def connect_trainings(studio: Studio) -> None:
    """Let the studio know when a training is under way."""
    studio.handover.find_training = open_queue(studio).find_running


def show_device(studio: Studio, load: Any) -> None:
    """A line above all tabs that says who has the GPU; call inside `gr.Blocks`."""
    state = gr.HTML(elem_id="device-state")
    shown = gr.State(None)

    def look(before: str | None) -> list[Any]:
        said = studio.handover.describe()
        return [gr.skip() if said == before else draw_note(said), said]

    timer = gr.Timer(SECONDS)
    gr.on([timer.tick, load], look, shown, [state, shown], trigger_mode="always_last", **QUIET)


def find_port() -> int:
    """A port that is free now on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch_settings(
    studio: Studio, *, local: bool = True, root_path: str = ""
) -> dict[str, object]:
    """What `Blocks.launch` is told wherever the app is served."""
    studio.outputs.mkdir(parents=True, exist_ok=True)
    guards = [
        Middleware(OriginGuard, local=local, public=root_path),  # pyright: ignore
        Middleware(LoginGuard),  # pyright: ignore
    ]
    return {
        "theme": THEME,
        "css": STYLE + (SMALL_PICTURES if studio.bases.find_side("") <= SMALL_SIDE else ""),
        "head": WAIT_FOR_STREAM,
        "allowed_paths": [str(studio.outputs.resolve())],
        "max_file_size": MAX_UPLOAD_BYTES,
        "app_kwargs": {"middleware": guards},
        "footer_links": ["api"],
        "run_history": False,
        "show_error": False,  # our own messages are shown all the same
        "strict_cors": True,
        "root_path": root_path or None,
        # Gradio would give its own page three seconds, which a busy machine does not keep; that the
        # server answers is seen before, without a limit.
        "_frontend": False,
    }


def serve(
    *,
    base: str | None,
    adapters_dir: Path,
    outputs_dir: Path,
    models_dir: Path | None = None,
    pictures_dirs: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    auth: Sequence[str] = (),
    share: bool = False,
    offline: bool = False,
    mcp: bool = False,
    root_path: str = "",
    opening: Mapping[str, Any] | None = None,
    max_side: int = MAX_SIDE,
    while_training: Policy = "wait",
    labellers: Mapping[str, str] | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        models_dir: folder of further base models; None offers none.
        pictures_dirs: folders of pictures that visitors may train on, and folders of such folders.
        port: 0 picks a free one.
        auth: `NAME:PASSWORD`, or `@FILE` with one a line.
        share: open a public tunnel; refused without `auth`.
        offline: no request leaves the machine.
        mcp: serve the endpoints as tools of the Model Context Protocol too.
        root_path: where a reverse proxy serves the app: a path, or the whole public address.
        opening: how bases are opened, arguments of `load_base`.
        max_side: the longest side of a picture that may be asked for, px.
        while_training: what becomes of pictures while a training has the GPU, see
            `sdatoms_app.studio.handover`.
        labellers: models that label pictures on the Train tab, `captioner` and `segmenter`, or
            measure trainings, `evaluator` and `style_evaluator`.

    Raises:
        AtomError: flags that do not go together, a missing folder or package, or the port is taken
            or none.
    """
    check_side("--max-side", max_side, least=64)
    if not 0 <= port <= LAST_PORT:
        raise AtomError(f"--port is {port}; it takes 0 to {LAST_PORT}")
    people, root_path = read_auth(auth), check_root_path(root_path)
    if share and not people:
        raise AtomError("--share opens the app to everybody; it takes --auth NAME:PASSWORD too")
    if share and offline:
        raise AtomError("--share needs the network that --offline forbids; drop one of them")
    if mcp and people:
        raise AtomError("--mcp asks nobody for a password, so it does not go with --auth; drop one")
    if mcp and importlib.util.find_spec("mcp") is None:
        raise AtomError('--mcp needs the package mcp; install it with: pip install "sdatoms[mcp]"')
    named = [("--models-dir", models_dir)] if models_dir else []
    for flag, folder in [*named, *(("--pictures-dir", path) for path in pictures_dirs)]:
        if not folder.is_dir():
            raise AtomError(f"{flag}: there is no folder {str(folder)!r}")
    local = host in ("127.0.0.1", "localhost") and not share
    harden(local=local, offline=offline)
    keep_loopback_direct()
    prepare_folder("--outputs-dir", outputs_dir)
    prepare_uploads()
    studio = Studio(
        base,
        Library(adapters_dir, models_dir, None if base else find_assets() / "examples"),
        outputs_dir,
        models=models_dir,
        hub=local and not offline,
        opening={"say": lambda text: print(text, flush=True), **(opening or {})},
        max_side=max_side,
        handover=Handover(while_training),
        labellers=labellers,
        measures=True,
    )
    connect_trainings(studio)
    with studio.lock:
        studio.open()
    app = build_app(studio, pictures_dirs)
    try:
        with contextlib.nullcontext() if share else hide_proxies():
            app.launch(
                server_name=host,
                server_port=port or find_port(),
                auth=people or None,
                share=share,
                mcp_server=mcp,
                prevent_thread_lock=True,
                **launch_settings(studio, local=local, root_path=root_path),  # pyright: ignore[reportArgumentType]
            )
    except (OSError, UnicodeError) as error:  # a name that is no host's
        raise AtomError(f"the app cannot listen on {clip(host)}:{port}: {error}") from None
    stopped = threading.Event()
    threading.Thread(target=watch, args=(studio.hand_over, stopped), daemon=True).start()
    try:
        app.block_thread()
    finally:
        stopped.set()


def prepare_folder(flag: str, folder: Path) -> None:
    """Make a folder, and see that files can be written there.

    Raises:
        AtomError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AtomError(
            f"{flag}: the folder {str(folder)!r} cannot be written to: {error.strerror}"
        ) from None


def prepare_uploads() -> None:
    """See that uploads have a folder of our own: the usual one, unless it is somebody else's.

    Raises:
        AtomError: the machine has no temporary folder that can be written to, or the one that the
            environment names cannot.
    """
    named = os.environ.get("GRADIO_TEMP_DIR")
    if named:
        prepare_folder("GRADIO_TEMP_DIR", Path(named))
        return
    try:
        usual = Path(tempfile.gettempdir()) / "gradio"
        usual.mkdir(exist_ok=True)
        if usual.stat().st_uid != os.getuid():
            os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="sdatoms-")
    except OSError as error:
        raise AtomError(
            f"there is no temporary folder to write to: {error.strerror or error}; name one in "
            "TMPDIR"
        ) from None
