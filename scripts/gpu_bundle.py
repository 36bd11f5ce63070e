"""Models for a check on a GPU: `gpu_bundle.py KILN FOLDER` writes FOLDER/models.

MiniLM in f32 and bf16, with the first rows of its vocabulary alone, as the whole table
would be most of the bundle; PP-OCR's classifier. Each as an artifact for GPUs, inputs, and
what this machine's processor computes from them in the same precision.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models  # noqa: E402

KILN, FOLDER = sys.argv[1], Path(sys.argv[2]) / "models"
TARGETS = ["sm_80", "sm_90a"]
WORDS = 2048


def shortened(path):
    """MiniLM whose table of words has its first `WORDS` rows."""
    model, cut = onnx.load(models.path("minilm")), 0
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.dims[0] > 20000:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:WORDS], tensor.name))
            cut += 1
    if cut != 1:
        sys.exit(f"MiniLM has {cut} tables of words, not one")
    onnx.save(model, path)
    return path, [i.name for i in model.graph.input]


def sentences(names):
    """Eight rows of words, of different lengths."""
    rng, shape = np.random.default_rng(3), (8, 128)
    lengths = rng.integers(9, shape[1] + 1, shape[0])
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    all_inputs = {"input_ids": rng.integers(100, WORDS, shape) * mask, "attention_mask": mask,
                  "token_type_ids": np.zeros(shape, np.int64)}
    return {name: all_inputs[name] for name in names}


def run(*command):
    done = subprocess.run([KILN, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")


def pack(name, model, feed, options, bound):
    artifact, inputs, expected = (FOLDER / f"{name}{end}" for end in (".kiln", ".inputs.npz", ".expected.npz"))
    np.savez(inputs, **feed)
    with tempfile.TemporaryDirectory() as temporary:
        own, out = Path(temporary) / "own.kiln", Path(temporary) / "out"
        run("compile", model, *options, "-o", own)
        run("run", own, "--inputs", inputs, "--output-dir", out)
        np.savez(expected, **{p.stem: np.load(p) for p in out.iterdir()})
    run("compile", model, *options, *(word for t in TARGETS for word in ("--target", t)), "-o", artifact)
    return {"name": name, "artifact": artifact.name, "inputs": inputs.name, "expected": expected.name, "bound": bound}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        minilm, names = shortened(Path(temporary) / "minilm.onnx")
        image = np.random.default_rng(4).standard_normal((4, 3, 48, 192)).astype(np.float32)
        said = [
            pack("minilm-f32", minilm, sentences(names), [], 1e-5),
            pack("minilm-bf16", minilm, sentences(names), ["--precision", "bf16"], 1e-2),
            pack("ocr-classify", models.path("ocr-classify"), {"x": image}, [], 1e-5),
        ]
    (FOLDER / "models.json").write_text(json.dumps(said, indent=1))
    print("models: " + ", ".join(m["name"] for m in said))


main()
