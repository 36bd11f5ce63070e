"""Runs a model in ONNX Runtime on seeded token ids with padding masks and writes
what goes in and what comes out as TensorProto files.

    expected.py MODEL.onnx OUT_DIR BATCHxSEQ...

Prints nothing; exits 3 where the model or onnxruntime is not installed.
"""

import os
import site
import sys

try:
    import numpy as np
    import onnxruntime
    from onnx import numpy_helper
except ImportError as e:
    print(e, file=sys.stderr)
    sys.exit(3)


def find(model):
    for root in site.getsitepackages() + [site.getusersitepackages()]:
        path = os.path.join(root, model)
        if os.path.exists(path):
            return path
    print(f"{model} is not installed", file=sys.stderr)
    sys.exit(3)


def save(folder, kind, k, name, value):
    with open(os.path.join(folder, f"{kind}_{k}.pb"), "wb") as f:
        f.write(numpy_helper.from_array(value, name).SerializeToString())


def main():
    model, out = find(sys.argv[1]), sys.argv[2]
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "model.txt"), "w") as f:
        f.write(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for size in sys.argv[3:]:
        batch, seq = map(int, size.split("x"))
        rng = np.random.default_rng(batch * 1000 + seq)
        folder = os.path.join(out, size)
        os.makedirs(folder, exist_ok=True)
        lengths = rng.integers(1, seq + 1, batch)
        mask = (np.arange(seq)[None] < lengths[:, None]).astype(np.int64)
        feeds = {}
        for i in session.get_inputs():
            if i.name == "attention_mask":
                feeds[i.name] = mask
            elif i.name == "token_type_ids":
                feeds[i.name] = np.zeros((batch, seq), np.int64)
            else:
                feeds[i.name] = rng.integers(0, 30522, (batch, seq)) * mask
        for k, (name, value) in enumerate(feeds.items()):
            save(folder, "input", k, name, value)
        for k, (o, value) in enumerate(zip(session.get_outputs(), session.run(None, feeds))):
            save(folder, "output", k, o.name, value)


main()
