"""Real models from one artifact each, against ONNX Runtime.

usage: e2e_models.py KILN KILN_RT [NAME...]

Sentence models at batches 1 to 8 and lengths 1 to 256 with padding masks, the
three models of a text recogniser at several image sizes, and the models that
build_models.py and build_exported.py make: the relative error is at most 1e-4, no
element is off by more than 1e-3 of the largest, and integers are equal. Some of the
latter again in f16, and some models compiled with `--precision`: within 1e-2 and 1e-1.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import against_ort
import build_exported
import build_models
import models

SHAPES = [(1, 1), (1, 2), (1, 7), (1, 16), (1, 17), (1, 64), (1, 100), (1, 128), (1, 255), (1, 256),
          (2, 1), (2, 33), (3, 65), (4, 16), (5, 48), (6, 129), (7, 31), (8, 1), (8, 128), (8, 256)]
BUILT = {**build_models.MODELS, **build_exported.MODELS}
# Without those whose operators ONNX Runtime has no f16 for, and UNet's integers, which
# are the places of the largest of nearly equal scores.
HALF = ["if", "scan", "speech", "spectrogram", "cnn", "decoder", "windows", "experts", "positions", "dilated"]
# Those whose outputs are numbers, not choices among nearly equal ones.
NARROWED = {"minilm": ["bf16", "f16"], "ocr-recognise": ["bf16"], "decoder": ["bf16", "f16"],
            "loop": ["bf16"], "lstm": ["bf16"], "speech": ["bf16"]}
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


def half(graph):
    """Turns a graph's f32 into f16."""
    half_of = lambda t: numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name)
    for t in graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT:
            t.CopyFrom(half_of(t))
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                half(a.g)
            elif a.type == onnx.AttributeProto.TENSOR and a.t.data_type == onnx.TensorProto.FLOAT:
                a.t.CopyFrom(half_of(a.t))
            elif node.op_type == "Cast" and a.name == "to" and a.i == onnx.TensorProto.FLOAT:
                a.i = onnx.TensorProto.FLOAT16


def in_half(build, path):
    """Writes a model in f16; its runs."""
    model, runs = build()
    half(model.graph)
    onnx.save(model, path)
    narrow = lambda a: a.astype(np.float16) if a.dtype == np.float32 else a
    return [(label, {n: narrow(a) for n, a in feed.items()}) for label, feed in runs]


def cases(tmp):
    """Each model's name, its file, its runs, the bounds, and options of the compiler."""
    for name, path, runs in full_precision(tmp):
        yield name, path, runs, 1e-4, 1e-3, []
        for precision in NARROWED.get(name, []):
            yield f"{name}-as-{precision}", path, runs, 1e-2, 1e-1, ["--precision", precision]
    for name in HALF:
        path = Path(tmp) / f"{name}-f16.onnx"
        yield f"{name}-f16", path, in_half(BUILT[name], path), 1e-2, 1e-1, []


def full_precision(tmp):
    for model in ["minilm", "minilm-int8"]:
        yield model, models.path(model), [("%d x %d" % shape, sentences(*shape)) for shape in SHAPES]
    for model, shapes in IMAGES.items():
        path = models.path(model)
        if model == "ocr-detect":
            path = without_last_sigmoid(path, tmp)
        yield model, path, [("%d x %d x %d" % shape, image(*shape)) for shape in shapes]
    for name, build in BUILT.items():
        model, runs = build()
        path = Path(tmp) / f"{name}.onnx"
        onnx.save(model, path)
        yield name, path, runs


def main():
    kiln, kiln_rt, *only = sys.argv[1:]
    total = np.zeros(2, int)
    with tempfile.TemporaryDirectory() as tmp:
        for name, path, runs, relative, element, options in cases(tmp):
            if not only or name in only:
                total += against_ort.compare(kiln, kiln_rt, name, path, runs, tmp, relative, element, options)
    print(f"{total[0]} passed, {total[1]} failed")
    sys.exit(1 if total[1] else 0)


if __name__ == "__main__":
    main()
