#!/usr/bin/env bash
# Writes the standard's whole suite, as the installed `onnx` package has it:
#   onnx_suite.sh OUT
# OUT/node, OUT/simple, OUT/pytorch-converted, OUT/pytorch-operator and OUT/light,
# each with a folder a case (model.onnx, test_data_set_N/{input,output}_K.pb, and
# data.json where the case has tolerances of its own): what `kiln verify --suite OUT`
# reads.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] || { echo "usage: onnx_suite.sh OUT" >&2; exit 64; }
out=$1
python=.venv/bin/python
mkdir -p "$out"
"$python" scripts/onnx_node_cases.py "$out/node"
data=$("$python" -c 'import pathlib, onnx.backend.test; print(pathlib.Path(onnx.backend.test.__file__).parent / "data")')
for set in simple pytorch-converted pytorch-operator; do
  mkdir -p "$out/$set"
  cp -r "$data/$set/." "$out/$set/"
  echo "$(find "$out/$set" -name model.onnx | wc -l) cases of $set"
done
"$python" scripts/onnx_light_cases.py "$data" "$out/light"
