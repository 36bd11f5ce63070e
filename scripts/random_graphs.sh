#!/usr/bin/env bash
# Random ONNX graphs: Kiln (every level of x86-64 here, the interpreter) against ONNX Runtime.
#
#   random_graphs.sh N [FIRST_SEED]
#
# OUT (default target/random-graphs) keeps the seeds that differ, as OUT/failed/SEED;
# KILN is the binary, JOBS how many processes run at once. Fails if any seed does.
set -euo pipefail
cd "$(dirname "$0")/.."
count=$1 first=${2:-0}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export KILN=${KILN:-$target/release/kiln} OUT=${OUT:-$target/random-graphs} PYTHON=${PYTHON:-.venv/bin/python}
export KILN_CACHE_DIR=${KILN_CACHE_DIR:-$target/kernel-cache}
# A wrong graph is off by far more; a right one by ten times less than this.
export RTOL=${RTOL:-1e-4} ATOL=${ATOL:-1e-5}
levels=(--target x86-64-v3)
grep -q avx512f /proc/cpuinfo && levels+=(--target x86-64-v4)
if grep -q avx512_bf16 /proc/cpuinfo; then
  levels+=(--target x86-64-v4-bf16)
elif grep -q avx512_vnni /proc/cpuinfo; then
  levels+=(--target x86-64-v4-vnni)
fi
export LEVELS="${levels[*]}"

verify() {
  # shellcheck disable=SC2086
  timeout "$1" "$KILN" verify --suite "$2" $LEVELS --interpreter --threads 2 --rtol "$RTOL" --atol "$ATOL" --json 2>"$2.err"
}
export -f verify

# One chunk of seeds: its JSON document, or one for each case if something crashes.
chunk() {
  local from=$1 to=$2 dir=$OUT/chunk-$1 one rc seed
  rm -rf "$dir"
  mkdir -p "$dir"
  "$PYTHON" scripts/random_graphs.py "$dir" --seeds "$from:$to" >"$dir.log" || { echo "no graphs for $from:$to" >&2; exit 255; }
  rc=0
  verify 600 "$dir" >"$dir.json" || rc=$?
  if [ "$rc" -gt 1 ]; then
    : >"$dir.json"
    for seed in $(seq "$from" $((to - 1))); do
      one=$dir-one
      rm -rf "$one"
      mkdir -p "$one"
      cp -r "$dir/$seed" "$one/"
      rc=0
      verify 120 "$one" >"$one.json" || rc=$?
      if [ "$rc" -gt 1 ]; then
        printf '{"passed":0,"failed":1,"skipped":0,"skips":{},"failures":["FAILED %s: ended with status %s: %s"]}\n' "$seed" "$rc" \
          "$(tr '\r' '\n' <"$one.err" | grep -v '^ *$' | tail -n 1 | tr -d '"\\' | tr -cd '[:print:]')" >>"$dir.json"
      else
        cat "$one.json" >>"$dir.json"
      fi
    done
    rm -rf "$one" "$one.json" "$one.err"
  fi
  for seed in $(grep -o '"FAILED [0-9]*' "$dir.json" | grep -o '[0-9]*'); do
    mkdir -p "$OUT/failed"
    rm -rf "$OUT/failed/$seed"
    mv "$dir/$seed" "$OUT/failed/"
  done
  mv "$dir.json" "$OUT/result-$from.json"
  rm -rf "$dir" "$dir.err" "$dir.log"
}
export -f chunk

mkdir -p "$OUT"
rm -f "$OUT"/result-*.json
size=50
seq "$first" "$size" $((first + count - 1)) |
  while read -r from; do
    to=$((from + size)) end=$((first + count))
    echo "$from $((to < end ? to : end))"
  done |
  xargs -P "${JOBS:-2}" -L 1 bash -euo pipefail -c 'chunk "$0" "$1"'

"$PYTHON" - "$OUT" "$count" <<'PY'
import collections, glob, json, re, sys
total, codes, failed = collections.Counter(), collections.Counter(), []
for path in glob.glob(sys.argv[1] + "/result-*.json"):
    for line in open(path):
        d = json.loads(line)
        total.update({k: d[k] for k in ("passed", "failed", "skipped")})
        failed += d["failures"]
        for reason, names in d["skips"].items():
            codes[(re.search(r"K\d{4}", reason) or ["no code"])[0]] += len(names)
for note in sorted(failed):
    print(note)
refused = ", ".join(f"{n} {c}" for c, n in codes.most_common()) or "none"
print(f"{total['passed']} graphs agree, {total['failed']} differ, {total['skipped']} refused ({refused})")
sys.exit(total["failed"] > 0 or sum(total.values()) != int(sys.argv[2]))
PY
