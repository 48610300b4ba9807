#!/usr/bin/env bash
# Build wheel and sdist of the version in sdatoms/version.py into dist/, try the wheel in an empty environment, make a
# wheel from the sdist and compare, pack the extensions of other programs, and write the release's notes from
# CHANGELOG.md. Nothing is uploaded.
# Usage: bash scripts/release.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
version=$(python -c 'from sdatoms.version import __version__; print(__version__)')
grep -q "^version: $version$" CITATION.cff || { echo "CITATION.cff names another version than $version" >&2; exit 2; }
notes=$(awk -v version="$version" '/^## / { on = $2 == version; next } on' CHANGELOG.md)
if [ -z "${notes//[[:space:]]/}" ]; then
    echo "CHANGELOG.md has no section '## $version'" >&2
    exit 2
fi
if [ -n "$(git status --porcelain)" ]; then
    echo "there are changes that are not committed: a release is made of a commit" >&2
    exit 2
fi
rm -rf dist
python -m hatchling build --directory dist
wheel=dist/sdatoms-$version-py3-none-any.whl
again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
python -m pip wheel "dist/sdatoms-$version.tar.gz" --wheel-dir "$again" --no-deps --no-build-isolation --no-index --quiet
list() { python -m zipfile --list "$1" | awk 'NR > 1 { print $1, $NF }' | grep -v RECORD | sort; }
diff <(list "$wheel") <(list "$again/$(basename "$wheel")") >&2 ||
    { echo "the sdist makes another wheel" >&2; exit 1; }
python -m pytest -m slow tests/laws/test_wheel.py
for pack in comfyui webui; do # folders to unpack into custom_nodes/ and into extensions/
    git archive --format=zip --prefix=sdatoms/ --output="dist/sdatoms-$pack-$version.zip" "HEAD:app/$pack"
done
{ printf '# sdatoms %s\n\n%s\n\n' "$version" "$notes"; cd dist; sha256sum ./*.whl ./*.tar.gz ./*.zip | sed 's/^/    /'; } >dist/notes.md
echo "dist/ holds sdatoms $version, tried in an empty environment, and notes.md"
