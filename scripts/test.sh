#!/usr/bin/env bash
# Every check, with the time each took. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export KILN_CACHE_DIR="$target/kernel-cache"
python=.venv/bin/python
times=()
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  times+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

runtime_alone() {
  cargo build -q --profile dist -p kiln-runtime --bin kiln-rt
  local binary=$target/dist/kiln-rt size newest
  size=$(stat -c %s "$binary")
  newest=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
  echo "kiln-rt: $size bytes, asks for $newest"
  [ "$size" -le 8000000 ] || { echo "kiln-rt is over 8 MB"; return 1; }
  [ "$(printf '%s\nGLIBC_2.34\n' "$newest" | sort -V | tail -n 1)" = GLIBC_2.34 ] || { echo "kiln-rt asks for a newer glibc than 2.34"; return 1; }
  if cargo tree -q -p kiln-runtime -e normal | grep -E 'mlir|melior|inkwell|llvm|protobuf'; then
    echo "the runtime depends on a compiler"; return 1
  fi
}

step "format" cargo fmt --all --check
step "format of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
step "lint" cargo clippy -q --release --workspace --all-targets -- -D warnings
step "licences" "$python" scripts/licences.py
# Kernel tests leave their PTX for the assembler.
export KILN_TEST_PTX="$target/test-ptx"
rm -rf "$KILN_TEST_PTX"
mkdir -p "$KILN_TEST_PTX"
step "unit and property tests" cargo test -q --release --workspace
attention_on_hopper() {
  env -u KILN_TEST_PTX KILN_TEST_GPU=sm_90a cargo test -q --release --workspace --test compiled attention
}
step "attention as PTX for Hopper" attention_on_hopper
step "build" cargo build -q --release --workspace --bins --examples
step "the runtime alone" runtime_alone
onnx_suite() {
  local suite=$target/onnx-suite
  [ -d "$suite/light" ] || bash scripts/onnx_suite.sh "$suite" 2>/dev/null
  "$target/release/kiln" verify --suite "$suite" --json > "$target/onnx-suite.json" || { head -c 3000 "$target/onnx-suite.json"; return 1; }
  "$python" scripts/onnx_suite_check.py "$target/onnx-suite.json"
}

step "ONNX's suite, compiled" onnx_suite
# What a script writes against ONNX Runtime, compiled: all right, and all there.
written_cases() {
  local script=$1 least=$2 cases=$target/$1 out
  rm -rf "$cases"
  "$python" "scripts/$script.py" "$cases" >/dev/null
  out=$("$target/release/kiln" verify --suite "$cases" --json) || { echo "$out" | head -c 3000; return 1; }
  echo "$out" | "$python" -c 'import json,sys; d=json.load(sys.stdin); print(d["passed"], "compiled and right,", d["failed"], "wrong,", d["skipped"], "skipped"); sys.exit(d["failed"] + d["skipped"] > 0 or d["passed"] < int(sys.argv[1]))' "$least"
}
step "operators of com.microsoft, compiled" written_cases microsoft_cases 244
operators_as_ptx() {
  local out
  out=$("$target/release/kiln" verify --suite "$target/microsoft_cases" --device sim --target sm_90a --json) || { echo "$out" | head -c 3000; return 1; }
  echo "$out" | "$python" -c 'import json,sys; d=json.load(sys.stdin); print(d["passed"], "passed"); sys.exit(d["failed"] + d["skipped"] > 0 or d["passed"] < 244)'
}
step "the same as PTX on its interpreter" operators_as_ptx
step "more operators, compiled" written_cases operator_cases 165
step "strings, compiled" written_cases string_cases 149
step "300 random graphs against ONNX Runtime" bash scripts/random_graphs.sh 300 0
step "real models against ONNX Runtime" "$python" scripts/e2e_models.py "$target/release/kiln" "$target/release/kiln-rt"
step "8-bit models against ONNX Runtime" "$python" scripts/int8_models.py "$target/release/kiln" "$target/release/kiln-rt"
step "150 random convolutions of 8-bit integers against ONNX Runtime" "$python" scripts/int8_convolutions.py "$target/release/kiln" "$target/release/kiln-rt" 150
step "kiln quantize against ONNX Runtime and its quantizer" "$python" scripts/quantize_models.py "$target/release/kiln" "$target/release/kiln-rt"
step "image networks against ONNX Runtime" "$python" scripts/light_models.py "$target/release/kiln" "$target/release/kiln-rt" --small
step "the first node that is off" "$python" scripts/diff_check.py "$target/release/kiln"
step "drivers that are missing, old or failing" "$python" scripts/driver_check.py "$target/release/kiln" "$target/release/kiln-rt"
# kiln-rt as it is shipped: built with the rest of the workspace it has the interpreter.
step "damaged and hostile input" "$python" scripts/bad_input.py "$target/release/kiln" "$target/dist/kiln-rt"
# GPUs: everything but the chip.
node_tests_as_ptx() {
  "$target/release/kiln" verify --suite "$target/onnx-suite/node" --device sim --target sm_80 --json > "$target/onnx-ptx.json" || { head -c 3000 "$target/onnx-ptx.json"; return 1; }
  "$python" -c 'import json,sys; d=json.load(open(sys.argv[1])); print(d["passed"], "passed,", d["failed"], "failed,", d["skipped"], "skipped"); sys.exit(d["failed"] > 0 or d["passed"] < 1865)' "$target/onnx-ptx.json"
}
random_graphs_as_ptx() {
  local graphs=$target/random-ptx
  rm -rf "$graphs"
  mkdir -p "$graphs"
  "$python" scripts/random_graphs.py "$graphs" --seeds 600000:600300 >/dev/null
  "$target/release/kiln" verify --suite "$graphs" --device sim --target sm_90a --rtol 1e-4 --atol 1e-5 --json > "$graphs.json" || { head -c 3000 "$graphs.json"; return 1; }
  "$python" -c 'import json,sys; d=json.load(open(sys.argv[1])); print(d["passed"], "agree,", d["failed"], "differ,", d["skipped"], "refused"); sys.exit(d["failed"] > 0 or d["passed"] < 295)' "$graphs.json"
}
step "PTX, assembled by ptxas 12.4 and 13" "$python" scripts/ptx_check.py "$target/release/kiln" "$KILN_TEST_PTX"
step "ONNX's node tests as PTX on its interpreter" node_tests_as_ptx
step "300 random graphs as PTX on its interpreter" random_graphs_as_ptx
step "models as PTX on its interpreter" "$python" scripts/gpu_models.py "$target/release/kiln"
step "the check for GPUs, without one" bash scripts/gpu_check.sh dry
fuzz_briefly() {
  local name runs log corpus
  while read -r name runs; do
    log=$target/fuzz-$name.log corpus=$(mktemp -d)
    # A corpus of its own, a fixed seed and number of runs (about 10 s): every run of
    # this step does the same.
    KILN_FUZZ_CORPUS=$corpus scripts/fuzz.sh "$name" 120 -seed=1 -runs="$runs" </dev/null >"$log" 2>&1 || { tail -n 60 "$log"; rm -rf "$corpus"; return 1; }
    rm -rf "$corpus"
    # Without feedback on coverage it would be no fuzzing.
    grep -q 'NEW  *cov: ' "$log" || { echo "$name: no coverage"; tail -n 20 "$log"; return 1; }
    echo "$name: $(grep -o 'DONE.*corp' "$log"), $(tail -n 1 "$log")"
  done <<<$'kir 6000\nonnx 8000\nartifact 3000\nsafetensors 100000'
}
step "fuzz, a short run of each" fuzz_briefly
bench_reports() {
  "$python" scripts/profile_check.py "$target/release/kiln" "$target/dist/kiln-rt"
  "$python" benches/peer_report.py --check
  "$python" benches/peers.py "$target/dist/kiln-rt" "$target/release/kiln" --only ocr-classify --rounds 1 --output "$target/peers"
  "$python" benches/where_time_goes.py "$target/dist/kiln-rt" "$target/release/kiln" --only ocr-classify --turns 1 --output "$target/where-time-goes.md"
}
step "benchmarks and what they write" bench_reports
step "cost" "$python" scripts/cost.py "$target/release/kiln" "$target/dist/kiln-rt"
step "demo" bash -c "'$target/release/kiln' compile \"\$($python scripts/models.py minilm)\" -o '$target/minilm.kiln' && '$target/release/examples/similarity' '$target/minilm.kiln' \"\$($python scripts/models.py tokenizer)\""

printf '\nwall times\n'
printf '%s\n' "${times[@]}"
printf '%d passed, 0 failed\n' "${#times[@]}"
