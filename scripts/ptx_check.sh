#!/usr/bin/env bash
# Assembles every PTX text of the simulator's tests: scripts/ptx_check.sh PTXAS
# The tests themselves need no ptxas. Texts of planted bugs are legal too: their bugs show
# when they run.
set -euo pipefail
cd "$(dirname "$0")/.."
ptxas=${1:?the path of ptxas 12.4 or later}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
KILN_PTX_DIR=$folder cargo test --release -q -p kiln-runtime --features sim --lib sim::tests > "$folder/log" 2>&1 \
    || { tail -20 "$folder/log"; exit 1; }
count=0
for file in "$folder"/*.ptx runtime/tests/ptx/probes/*.ptx; do
    target=$(awk '$1 == ".target" { print $2; exit }' "$file")
    "$ptxas" "-arch=$target" -o /dev/null "$file" > "$folder/said" 2>&1 || { cat "$file" "$folder/said"; exit 1; }
    count=$((count + 1))
done
echo "$count texts assemble"
