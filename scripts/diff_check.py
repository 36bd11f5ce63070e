"""`kiln diff` finds the node that is wrong, and only where one is.

    diff_check.py KILN

A speech encoder's values by ONNX Runtime are all within tolerance of Kiln's; with one
of them changed, at the start, in the middle and near the end, that one's node is the
first beyond it. Without a reference the interpreter agrees; at a tolerance below what
f32 can keep, the first node that rounds is named, with every value compared.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import build_models


def diff(kiln, model, inputs, expected, *more):
    command = [kiln, "diff", model, "--inputs", inputs, "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == expected, (done.returncode, done.stdout[:500], done.stderr[:500])
    return json.loads(done.stdout)


def main():
    kiln = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        file, inputs, reference = (str(Path(folder) / n) for n in ("model.onnx", "in.npz", "ref.npz"))
        model, runs = build_models.speech()
        onnx.save(model, file)
        np.savez(inputs, **runs[1][1])
        script = Path(__file__).with_name("ort_intermediates.py")
        subprocess.run([sys.executable, str(script), file, inputs, "-o", reference], check=True)
        found = diff(kiln, file, inputs, 0, "--reference", reference)
        print(f"{found['compared']} values compared, all within tolerance")
        assert found["compared"] > 0.9 * len(model.graph.node) and not found["not_in_the_model"], found
        with np.load(reference) as saved:
            values = dict(saved)
        floats = [n for n in model.graph.node if values[n.output[0]].dtype == np.float32]
        for node in (floats[1], floats[len(floats) // 2], floats[-2]):
            name = node.output[0]
            changed = values[name].copy()
            changed.flat[changed.size // 2] += 0.1 * np.linalg.norm(changed)
            np.savez(reference, **{**values, name: changed})
            found = diff(kiln, file, inputs, 1, "--reference", reference)
            assert found["beyond"] == 1 and found["first"]["value"] == name, (name, found)
            assert node.name in found["first"]["node"], (node.name, found)
            print(f"changed {name}: found at {found['first']['node']}, relative error {found['first']['relative']:.1e}")
        found = diff(kiln, file, inputs, 0)
        assert found["compared"] == len(model.graph.output) and found["first"] is None, found
        found = diff(kiln, file, inputs, 1, "--rtol", "1e-12")
        first = next(n for n in model.graph.node if n.op_type == "Conv")
        assert found["compared"] == len(values) and found["first"]["value"] == first.output[0], found
    print("6 passed, 0 failed")


if __name__ == "__main__":
    main()
