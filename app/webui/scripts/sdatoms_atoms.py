"""What the web UI loads: registers the network `<atoms:…>` and the tab "Atoms"."""

from typing import Any

from modules import (  # the web UI's own  # pyright: ignore
    extra_networks,
    script_callbacks,
    scripts,
    ui_extra_networks,
)
from sdatoms_webui.page import ExtraNetworksPageAtoms
from sdatoms_webui.prompt_network import ExtraNetworkAtoms

NETWORK = ExtraNetworkAtoms()


def register() -> None:
    extra_networks.register_extra_network(NETWORK)
    ui_extra_networks.register_page(ExtraNetworksPageAtoms())


script_callbacks.on_before_ui(register)


class AtomsScript(scripts.Script):
    """Has no controls; it is told when all networks of a prompt are in place."""

    def title(self) -> str:
        return "Filter atoms"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def after_extra_networks_activate(self, p: Any, *args: Any, **kwargs: Any) -> None:
        NETWORK.apply(p)
