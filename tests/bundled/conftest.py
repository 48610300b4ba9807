"""`scripts/` on the path, as `python scripts/x.py` has it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
