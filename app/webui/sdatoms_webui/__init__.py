"""Filter atoms in AUTOMATIC1111's web UI and in Forge: `<atoms:name:0.8>` in the prompt."""
