#!/bin/bash
# One GPU beside this machine's processors: whether it finds the same poses, whether it gives the same bits twice, how fast it is.
#
#   bash jobs/scaling/gpu.sh [OPTIONS]            see jobs/scaling/gpu.py --help
#
# Takes under eight minutes on one card, and writes gpu.json, from which docs/gpu.md has its numbers. PYTHON names the Python, which
# needs mpipar's dependencies, cupy and numba-cuda (pip install 'mpipar[gpu]'); without them the script says so.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "${PYTHON:-python3}" "$root/jobs/scaling/gpu.py" "$@"
