"""all-MiniLM-L6-v2 as an ONNX file, from its safetensors.

    build_sentence.py OUT.onnx

A BERT encoder of six layers, the mean of its last states over the tokens that the mask
keeps, and that mean's direction, as its published weights are used. Before the file is
written, ONNX Runtime's result for it is held against the same mathematics on the same
weights in numpy with f64.
"""
import json
import math
import struct
import sys

import numpy as np
import onnx
import onnxruntime as ort

import models
from build_models import F32, I64, Net

LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12


def tensors():
    """Every array of the safetensors file."""
    data = models.path("tokenizer").with_name("model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    body, types = data[8 + length:], {"F32": np.float32, "I64": np.int64}
    found = {}
    for name, t in header.items():
        if name != "__metadata__":
            begin, end = t["data_offsets"]
            found[name] = np.frombuffer(body[begin:end], types[t["dtype"]]).reshape(t["shape"])
    return found


class Encoder(Net):
    """The network under construction, with the published weights."""

    def __init__(self, weights):
        super().__init__(30)
        self.given = weights

    def of(self, name):
        return self.const(self.given[name])

    def dense(self, x, name):
        product = self.op("MatMul", x, self.const(np.ascontiguousarray(self.given[name + ".weight"].T)))
        return self.op("Add", product, self.of(name + ".bias"))

    def normed(self, x, name):
        return self.op("LayerNormalization", x, self.of(name + ".weight"), self.of(name + ".bias"), axis=-1, epsilon=EPSILON)

    def gelu(self, x):
        half = self.op("Mul", x, self.const(np.float32(0.5)))
        erf = self.op("Erf", self.op("Div", x, self.const(np.float32(math.sqrt(2)))))
        return self.op("Mul", half, self.op("Add", erf, self.const(np.float32(1))))

    def heads(self, x, perm):
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, HEADS, WIDTH // HEADS)), perm=perm)

    def layer(self, x, bias, name):
        q, k, v = (self.heads(self.dense(x, f"{name}.attention.self.{part}"), perm) for part, perm in
                   (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])))
        scores = self.op("Div", self.op("MatMul", q, k), self.const(np.float32(math.sqrt(WIDTH // HEADS))))
        p = self.op("Softmax", self.op("Add", scores, bias), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", p, v), perm=[0, 2, 1, 3])
        mixed = self.dense(self.op("Reshape", mixed, self.ints(0, 0, WIDTH)), f"{name}.attention.output.dense")
        x = self.normed(self.op("Add", mixed, x), f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.dense(x, f"{name}.intermediate.dense"))
        return self.normed(self.op("Add", self.dense(wide, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")


def network(weights):
    net = Encoder(weights)
    length = net.op("Slice", net.op("Shape", "input_ids"), net.ints(1), net.ints(2))
    words = net.op("Gather", net.of("embeddings.word_embeddings.weight"), "input_ids", axis=0)
    kinds = net.op("Gather", net.of("embeddings.token_type_embeddings.weight"), "token_type_ids", axis=0)
    places = net.op("Slice", net.of("embeddings.position_embeddings.weight"), net.ints(0), length, net.ints(0))
    x = net.normed(net.op("Add", net.op("Add", words, kinds), places), "embeddings.LayerNorm")
    mask = net.op("Cast", "attention_mask", to=F32)
    off = net.op("Mul", net.op("Sub", net.const(np.float32(1)), mask), net.const(np.float32(-1e9)))
    bias = net.op("Unsqueeze", off, net.ints(1, 2))
    for i in range(LAYERS):
        x = net.layer(x, bias, f"encoder.layer.{i}")
    kept = net.op("Unsqueeze", mask, net.ints(2))
    total = net.op("ReduceSum", net.op("Mul", x, kept), net.ints(1), keepdims=0)
    mean = net.op("Div", total, net.op("ReduceSum", kept, net.ints(1), keepdims=0))
    norm = net.op("Sqrt", net.op("ReduceSum", net.op("Mul", mean, mean), net.ints(1), keepdims=1))
    ports = [(name, I64, ["batch", "length"]) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return net.model("sentence", ports, [("embedding", net.op("Div", mean, norm), F32, ["batch", WIDTH])])


def by_hand(weights, ids, mask, kinds):
    """The same on the same weights in f64."""
    w = {name: a.astype(np.float64) for name, a in weights.items() if a.dtype == np.float32}
    dense = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]

    def normed(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * w[name + ".weight"] + w[name + ".bias"]

    batch, length = ids.shape
    split = lambda x: x.reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3)
    erf = np.vectorize(math.erf)
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "token_type_embeddings.weight"][kinds]
    x = normed(x + w[e + "position_embeddings.weight"][:length], e + "LayerNorm")
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        q, k, v = (split(dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS)
        scores = np.where(mask[:, None, None, :] == 0, -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (p / p.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(batch, length, WIDTH)
        x = normed(dense(mixed, f"{name}.attention.output.dense") + x, f"{name}.attention.output.LayerNorm")
        wide = dense(x, f"{name}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = normed(dense(wide, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
    mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def build(path):
    """Writes the model, after a check; the relative error of that."""
    weights = tensors()
    onnx.save(network(weights), path)
    r = np.random.default_rng(1)
    ids = r.integers(1000, 30000, (2, 9)).astype(np.int64)
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    kinds = np.zeros_like(ids)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds})[0]
    want = by_hand(weights, ids, mask, kinds)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    if error > 1e-5:
        raise SystemExit(f"all-MiniLM-L6-v2 as built is {error:.1e} away from its weights' own mathematics")
    return error


if __name__ == "__main__":
    print(f"written; {build(sys.argv[1]):.1e} away from numpy in f64")
