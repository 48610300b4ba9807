# Sourced by demo.sh and test.sh: makes .venv in the repository root and installs the package with its tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
if ! command -v "$PYTHON" >/dev/null; then
    echo "sdatoms needs Python 3.11 or later; no '$PYTHON' was found (set PYTHON=/path/to/python3)" >&2
    exit 2
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "sdatoms needs Python 3.11 or later; '$PYTHON' is $("$PYTHON" -c 'import platform; print(platform.python_version())')" >&2
    exit 2
fi
stamp=$(cat constraints.txt pyproject.toml scripts/setup.sh | cksum)
if [ "$(cat .venv/.installed 2>/dev/null)" != "$stamp" ]; then
    echo "installing into .venv (once)" >&2
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        rm -rf .venv
        "$PYTHON" -m venv .venv
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    # torch first: with it in place, no other package asks for another build of it
    .venv/bin/python -m pip install --quiet --constraint constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
    echo "$stamp" >.venv/.installed
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1
