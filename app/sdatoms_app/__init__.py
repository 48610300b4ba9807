"""The Gradio app of sdatoms: widgets, layout and event wiring over the library's public names."""
