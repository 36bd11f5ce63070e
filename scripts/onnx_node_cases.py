#!/usr/bin/env python3
"""Writes ONNX's own node tests as folders: NAME/model.onnx and
NAME/test_data_set_0/{input,output}_K.pb, the layout of the standard's suite.

    onnx_node_cases.py OUT_DIR [--match REGEX]

Needs the `onnx` package. Cases whose inputs or outputs are sequences, optionals
or maps are written as well, as SequenceProto and so on.
"""

import argparse
import os
import re
import sys

import numpy as np
import onnx
from onnx import numpy_helper


def as_proto(value, info):
    if isinstance(value, onnx.TensorProto):
        return value
    if isinstance(value, np.ndarray) or np.isscalar(value):
        return numpy_helper.from_array(np.asarray(value), info.name)
    if isinstance(value, (list, tuple)):
        return numpy_helper.from_list(list(value), info.name)
    if isinstance(value, dict):
        return numpy_helper.from_dict(value, info.name)
    if value is None:
        return numpy_helper.from_optional(None, info.name)
    return value


def write(case, folder):
    data = os.path.join(folder, "test_data_set_0")
    os.makedirs(data, exist_ok=True)
    onnx.save(case.model, os.path.join(folder, "model.onnx"))
    inputs, outputs = case.data_sets[0]
    graph = case.model.graph
    for kind, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
        for k, (value, info) in enumerate(zip(values, infos)):
            proto = as_proto(value, info)
            if isinstance(proto, onnx.TensorProto):
                proto.name = info.name
            with open(os.path.join(data, f"{kind}_{k}.pb"), "wb") as f:
                f.write(proto.SerializeToString())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--match", default="")
    args = parser.parse_args()
    from onnx.backend.test.case.node import collect_testcases

    written, failed = 0, 0
    for case in collect_testcases(None):
        if not re.search(args.match, case.name):
            continue
        try:
            write(case, os.path.join(args.out, case.name))
            written += 1
        except Exception as e:  # a case that this version of onnx cannot write
            failed += 1
            print(f"{case.name}: {e}", file=sys.stderr)
    print(f"{written} cases written, {failed} not")


if __name__ == "__main__":
    main()
