"""Build the app and serve it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdatoms_app.security import hide_proxies

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # else importing it asks the network
with hide_proxies():
    import gradio as gr

from starlette.middleware import Middleware

from sdatoms import AtomError
from sdatoms_app.atoms.tab import build_atoms_tab
from sdatoms_app.generate.api import build_generate_api
from sdatoms_app.generate.compare import build_compare_tab
from sdatoms_app.generate.tab import build_generate_tab
from sdatoms_app.runs.tab import build_runs_tab
from sdatoms_app.security import (
    LoginGuard,
    OriginGuard,
    check_root_path,
    harden,
    keep_loopback_direct,
    read_auth,
)
from sdatoms_app.studio.library import MAX_UPLOAD_BYTES, Library
from sdatoms_app.studio.studio import Studio
from sdatoms_app.style import STYLE, THEME
from sdatoms_app.train.tab import build_train_tab

__all__ = ["build_app", "find_port", "launch_settings", "serve"]

CACHE_SECONDS = (3600, 86_400)
"""How often uploads and copies of pictures are looked through, and how old they may grow."""


def build_app(studio: Studio, pictures: Sequence[Path] = ()) -> gr.Blocks:
    """The whole app over one studio; `pictures` are folders that visitors may train on."""
    with gr.Blocks(title="sdatoms", analytics_enabled=False, delete_cache=CACHE_SECONDS) as app:
        gr.Markdown("# sdatoms", elem_id="title")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):  # all in sight on a phone
            with gr.Tab("Generate", id="generate"):
                generate = build_generate_tab(studio, app.load)
            with gr.Tab("Compare", id="compare"):
                build_compare_tab(studio, generate)
            with gr.Tab("Atoms", id="atoms"):
                build_atoms_tab(studio, app.load)
            with gr.Tab("Train", id="train"):
                form = build_train_tab(studio, pictures)
            with gr.Tab("Runs", id="runs"):
                build_runs_tab(studio, form, generate)
        build_generate_api(studio)
    app.queue(max_size=64, default_concurrency_limit=4)
    return app


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
        "css": STYLE,
        "allowed_paths": [str(studio.outputs.resolve())],
        "max_file_size": MAX_UPLOAD_BYTES,
        "app_kwargs": {"middleware": guards},
        "footer_links": ["api"],
        "run_history": False,
        "show_error": False,  # our own messages are shown all the same
        "strict_cors": True,
        "root_path": root_path or None,
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
        labellers: models that label pictures on the Train tab: `captioner`, `segmenter`.

    Raises:
        AtomError: flags that do not go together, a missing folder or package, or the port is taken.
    """
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
        Library(adapters_dir),
        outputs_dir,
        models=models_dir,
        hub=local and not offline,
        opening={"say": lambda text: print(text, flush=True), **(opening or {})},
        labellers=labellers,
    )
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
    except OSError as error:
        raise AtomError(f"the app cannot listen on {host}:{port}: {error}") from None
    app.block_thread()


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
