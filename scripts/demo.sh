#!/usr/bin/env bash
# Set up, personalize the bundled base on a bundled subject, and write a before/after grid.
# Usage: bash scripts/demo.sh [--ui] [flags of `sdatoms demo`]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ui=false
flags=()
for flag in "$@"; do
    if [ "$flag" = --ui ]; then ui=true; else flags+=("$flag"); fi
done
sdatoms demo "${flags[@]}"
if $ui; then sdatoms ui; fi
