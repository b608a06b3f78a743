#!/usr/bin/env bash
# Make the virtual environment with Python 3.11; on Debian as root, install what `python -m venv` lacks.
set -euo pipefail
venv=$1
python=$(command -v python3.11 || command -v python3)
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "relent needs Python 3.11; $python is $("$python" --version)" >&2
    exit 1
fi
if ! "$python" -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    else
        echo "python cannot make virtual environments here; install the package python3-venv" >&2
        exit 1
    fi
    "$python" -m venv "$venv"
fi
