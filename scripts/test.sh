#!/usr/bin/env bash
# Every check, with the time each took. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
export KILN_CACHE_DIR="$PWD/$target/kernel-cache"
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
step "lint" cargo clippy -q --release --workspace --all-targets -- -D warnings
step "licences" "$python" scripts/licences.py
step "unit and property tests" cargo test -q --release --workspace
step "build" cargo build -q --release --workspace --bins --examples
step "the runtime alone" runtime_alone
onnx_suite() {
  local cases=$target/onnx-node-cases out
  [ -d "$cases" ] || "$python" scripts/onnx_node_cases.py "$cases" >/dev/null
  out=$("$target/release/kiln" verify --suite "$cases" --json) || { echo "$out" | head -c 3000; return 1; }
  # Every case that has kernels is right, and no fewer have than before.
  "$python" -c 'import json,sys; d=json.loads(sys.argv[1]); print(d["passed"], "compiled and right,", d["failed"], "wrong,", d["skipped"], "not supported yet"); sys.exit(d["failed"] > 0 or d["passed"] < 1780)' "$(echo "$out" | "$python" -c 'import json,sys; d=json.load(sys.stdin); print(json.dumps({k: d[k] for k in ("passed","failed","skipped")}))')"
}

step "ONNX node suite, compiled" onnx_suite
step "300 random graphs against ONNX Runtime" bash scripts/random_graphs.sh 300 0
step "real models against ONNX Runtime" "$python" scripts/e2e_models.py "$target/release/kiln" "$target/release/kiln-rt"
step "damaged and hostile input" "$python" scripts/bad_input.py "$target/release/kiln" "$target/release/kiln-rt"
step "cost" "$python" scripts/cost.py "$target/release/kiln" "$target/dist/kiln-rt"
step "demo" bash -c "'$target/release/kiln' compile \"\$($python scripts/models.py minilm)\" -o '$target/minilm.kiln' && '$target/release/examples/similarity' '$target/minilm.kiln' \"\$($python scripts/models.py tokenizer)\""

printf '\nwall times\n'
printf '%s\n' "${times[@]}"
printf '%d passed, 0 failed\n' "${#times[@]}"
