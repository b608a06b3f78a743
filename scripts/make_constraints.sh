#!/usr/bin/env bash
# Resolve all dependencies anew in a throw-away environment and write constraints.txt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(dirname "$0")/make_venv.sh" "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[dev]"
{
    echo "# Every package that the project installs, exactly. Made by \`make constraints\`; used by every install."
    "$folder/venv/bin/pip" freeze --exclude-editable --exclude pip | sed 's/+cpu$//'
} >constraints.txt
