#!/usr/bin/env python3
"""Writes ONNX's light models (the model zoo's networks with constant weights) as
cases of the standard's suite.

    onnx_light_cases.py DATA OUT_DIR

DATA is the `onnx` package's folder of test data. As its own runner does: the input
is a ramp from 0 to 1 over all elements, the outputs are those beside the model, the
tolerances those of DATA/real.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def ramp(info):
    tensor = info.type.tensor_type
    assert tensor.elem_type == onnx.TensorProto.FLOAT, info.name
    shape = [d.dim_value if d.HasField("dim_value") else 1 for d in tensor.shape.dim]
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def main():
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    cases = sorted((data / "real").glob("*/data.json"))
    for case in cases:
        about = json.loads(case.read_text())
        source = data / "light" / Path(about["url"]).name
        folder = out / case.parent.name
        (folder / "test_data_set_0").mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / "model.onnx")
        own = {"rtol": about["rtol"], "atol": about["atol"], "constant_weights": True}
        (folder / "data.json").write_text(json.dumps(own))
        graph = onnx.load(source).graph
        initialized = {t.name for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in initialized]
        for k, info in enumerate(inputs):
            tensor = numpy_helper.from_array(ramp(info), info.name)
            (folder / "test_data_set_0" / f"input_{k}.pb").write_bytes(tensor.SerializeToString())
        for k in range(len(graph.output)):
            shutil.copy(f"{source.with_suffix('')}_output_{k}.pb", folder / "test_data_set_0" / f"output_{k}.pb")
    print(f"{len(cases)} light models")


if __name__ == "__main__":
    main()
