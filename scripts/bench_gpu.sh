#!/usr/bin/env bash
# Everything that needs a GPU, in at most eight minutes (a first set-up comes on top).
# Usage: bash scripts/bench_gpu.sh [flags of scripts/bench_gpu.py]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python scripts/bench_gpu.py "$@"
