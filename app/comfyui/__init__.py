"""The folder as ComfyUI loads it from `custom_nodes/`: the nodes of `sdatoms_comfyui.py`."""

from .sdatoms_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
