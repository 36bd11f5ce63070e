#!/usr/bin/env bash
# Fuzzes one target for some seconds: scripts/fuzz.sh TARGET SECONDS [libFuzzer flags]
# Targets: onnx, artifact, kir, safetensors. What is found (crash-…, timeout-…,
# oom-…) is left in target/fuzz/found/TARGET, the corpus in target/fuzz/corpus/TARGET
# or the folder $KILN_FUZZ_CORPUS.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 64; }
name=$1 seconds=$2
shift 2
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz passes with -s none: LLVM's coverage counters and compares, for
# a compiler of the stable channel. They apply to the target triple alone, so
# build scripts and macros stay as they are.
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
  --cfg fuzzing)
RUSTFLAGS="${flags[*]}" cargo build -q --release --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$target" --bin "$name"

corpus=${KILN_FUZZ_CORPUS:-$target/corpus/$name} found=$target/found/$name
mkdir -p "$corpus" "$found" "fuzz/regressions/$name"
dictionary=()
if [ -f "fuzz/dictionaries/$name.dict" ]; then dictionary=("-dict=fuzz/dictionaries/$name.dict"); fi
exec "$target/$triple/release/$name" "$corpus" "fuzz/seeds/$name" "fuzz/regressions/$name" \
  -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 \
  -artifact_prefix="$found/" "${dictionary[@]}" "$@"
