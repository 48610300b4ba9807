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
    free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024))
    if [ ! -d .venv ] && [ "$free" -lt 3000 ]; then
        echo "sdatoms installs 3,000 MB into $PWD/.venv; this disk has $free MB free" >&2
        exit 2
    fi
    trap 'echo "the installation into $PWD/.venv stopped; nothing else was changed: run this again to go on" >&2' EXIT
    echo "installing into .venv (once)" >&2
    # a run that was killed may have left half an environment: begin anew unless pip answers there
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        rm -rf .venv
        "$PYTHON" -m venv .venv
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    # torch first: with it in place, no other package asks for another build of it
    .venv/bin/python -m pip install --quiet --constraint constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
    echo "$stamp" >.venv/.installed
    trap - EXIT
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1
