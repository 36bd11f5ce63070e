"""Real models from one artifact each, against ONNX Runtime.

usage: e2e_models.py KILN KILN_RT

Sentence models at batches 1 to 8 and lengths 1 to 256 with padding masks, the
three models of a text recogniser at several image sizes: the relative error is at
most 1e-4, and no element is off by more than 1e-3 of the largest.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import models

KILN, KILN_RT = sys.argv[1:3]
SHAPES = [(1, 1), (1, 2), (1, 7), (1, 16), (1, 17), (1, 64), (1, 100), (1, 128), (1, 255), (1, 256),
          (2, 1), (2, 33), (3, 65), (4, 16), (5, 48), (6, 129), (7, 31), (8, 1), (8, 128), (8, 256)]


IMAGES = {
    "ocr-classify": [(1, 48, 192), (2, 48, 96), (6, 48, 64)],
    "ocr-detect": [(1, 64, 96), (2, 160, 96), (1, 320, 320)],
    "ocr-recognise": [(1, 48, 320), (2, 48, 160), (5, 48, 64)],
}


def sentences(batch, length):
    r = np.random.default_rng(1000 * batch + length)
    ids = r.integers(1000, 30000, (batch, length)).astype(np.int64)
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        used = int(r.integers(1, length + 1))
        mask[row, used:] = 0
        ids[row, used:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def image(batch, height, width):
    r = np.random.default_rng(height * width + batch)
    return {"x": r.standard_normal((batch, 3, height, width)).astype(np.float32)}


def without_last_sigmoid(path, tmp):
    """The detector's scores before their sigmoid: ONNX Runtime's own sigmoid is off
    by several per cent where it is nearly 0, as it is for noise."""
    model = onnx.load(path)
    last = [n for n in model.graph.node if n.op_type == "Sigmoid"][-1]
    model.graph.node.remove(last)
    model.graph.output[0].name = last.input[0]
    to = Path(tmp) / "logits.onnx"
    onnx.save(model, to)
    return to


def file_name(name):
    return "".join(c if c.isalnum() or c in "._-:" else "_" for c in name) + ".npy"


def cases():
    for model in ["minilm", "minilm-int8"]:
        yield model, [("%d x %d" % shape, sentences(*shape)) for shape in SHAPES]
    for model, shapes in IMAGES.items():
        yield model, [("%d x %d x %d" % shape, image(*shape)) for shape in shapes]


def main():
    passed = failed = 0
    for model, runs in cases():
        with tempfile.TemporaryDirectory() as tmp:
            path = models.path(model)
            if model == "ocr-detect":
                path = without_last_sigmoid(path, tmp)
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [i.name for i in session.get_inputs()]
            artifact = Path(tmp) / "model.kiln"
            subprocess.run([KILN, "compile", str(path), "-o", str(artifact)], check=True)
            for shape, every in runs:
                given = {n: every[n] for n in names}
                np.savez(Path(tmp) / "in.npz", **given)
                subprocess.run([KILN_RT, "run", str(artifact), "--inputs", f"{tmp}/in.npz", "--output-dir", tmp],
                               check=True, stdout=subprocess.DEVNULL)
                worst_relative = worst_element = 0.0
                for out, want in zip(session.get_outputs(), session.run(None, given)):
                    got = np.load(Path(tmp) / file_name(out.name)).astype(np.float64)
                    want = want.astype(np.float64)
                    assert got.shape == want.shape, (out.name, got.shape, want.shape)
                    relative = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
                    element = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
                    worst_relative = max(worst_relative, relative)
                    worst_element = max(worst_element, element)
                ok = worst_relative <= 1e-4 and worst_element <= 1e-3
                passed, failed = passed + ok, failed + (not ok)
                print(f"{model:<14} {shape:<12} relative {worst_relative:.2e}  largest {worst_element:.2e}"
                      f"{'' if ok else '  FAILED'}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
