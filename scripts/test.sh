#!/usr/bin/env bash
# Set up and pass the checks and tests. Usage: bash scripts/test.sh [--all] [pytest arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
flags=()
for flag in "$@"; do
    if [ "$flag" = --all ]; then flags+=(-m "slow or not slow"); else flags+=("$flag"); fi
done
ruff check .
ruff format --check .
basedpyright
# two processes of one thread each: tensors of this size only wait for a second one, and a third
# process gains nothing on two cores
OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile "${flags[@]}"
