#!/usr/bin/env bash
# Checks and measures Kiln on a machine with an NVIDIA GPU that has the driver, Python and
# PyTorch, and neither Rust nor Kiln's sources nor a network.
#
#   gpu_check.sh bundle OUT.tar   here: packs all that the check needs, at most 60 MB
#   gpu_check.sh run OUT_DIR      there, from the folder into which the bundle was unpacked:
#                                 writes OUT_DIR/gpu-DATE-CHIP.json, prints a table last
#   gpu_check.sh dry              here: bundles, and does all of the check that needs no GPU
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
most=60000000
scripts=(gpu_check.sh gpu_check.py gpu_worker.py gpu_driver.py gpu_cases.py gpu_speed.py)

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 64
}

# The bundle as a folder.
assemble() {
  local folder=$1 name
  rm -rf "$folder"
  mkdir -p "$folder/probes"
  "$program" write "$folder"
  gzip -n9 "$folder"/kernels.*.ptx
  "$python" scripts/gpu_bundle.py "$target/release/kiln" "$folder"
  # An artifact's PTX is text: a good part of a small one.
  gzip -n6 "$folder"/models/*.kiln
  cp "$target/dist/kiln-rt" "$folder/"
  cp runtime/tests/ptx/probes/*.ptx "$folder/probes/"
  for name in "${scripts[@]}"; do cp "scripts/$name" "$folder/"; done
}

bundle() {
  local out=$1 folder=$target/gpu-check size
  cargo build -q --release -p kiln --bin kiln
  cargo build -q --profile dist -p kiln-runtime --bin kiln-rt
  cargo build -q --release -p kiln-kernels --no-default-features --example gpu_kernels
  assemble "$folder"
  tar --sort=name --owner=0 --group=0 -C "$folder" -cf "$out" .
  size=$(stat -c %s "$out")
  echo "$out: $size bytes"
  [ "$size" -le "$most" ] || { echo "the bundle is over $most bytes" >&2; return 1; }
}

prepare() {
  cd "$here/.."
  [ -f Cargo.toml ] || { echo "not in Kiln's sources: only \`run\` works in a bundle" >&2; exit 64; }
  target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
  python=.venv/bin/python
  program=$target/release/examples/gpu_kernels
  export KILN_CACHE_DIR=${KILN_CACHE_DIR:-$target/kernel-cache}
}

case "${1:-} $#" in
  "bundle 2")
    out=$(realpath -m "$2")
    prepare
    bundle "$out"
    ;;
  "run 2")
    [ -f "$here/kernels.json" ] || { echo "no bundle lies beside this script: unpack one, and run its gpu_check.sh" >&2; exit 64; }
    chmod +x "$here/kiln-rt"
    exec python3 -u "$here/gpu_check.py" "$here" "$2"
    ;;
  "dry 1")
    prepare
    bundle "$target/gpu-check.tar"
    # As it will be there: out of the archive.
    folder=$target/gpu-check-unpacked
    rm -rf "$folder"
    mkdir -p "$folder"
    tar -C "$folder" -xf "$target/gpu-check.tar"
    "$python" "$folder/gpu_check.py" "$folder" --no-device
    "$python" "$folder/gpu_check.py" "$folder" --sim "$program"
    ;;
  *) usage ;;
esac
