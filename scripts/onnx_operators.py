#!/usr/bin/env python3
"""Writes import/data/onnx-operators.tsv, what docs/onnx-operators.md knows of each
operator beside the importer's table: the versions of its definition, those with a
test that passes, and the element types that it is defined on and compiles with.

    onnx_operators.py KILN SUITE...

A SUITE is a folder of cases as `kiln verify --suite` reads them. Today's come from
onnx_node_cases.py; a release of the `onnx` package before 1.19 holds those of its
own opset in onnx/backend/test/data/node, so that

    pip download --no-deps --only-binary=:all: --python-version 36 \\
        --platform manylinux1_x86_64 onnx==1.4.1      and so on
    unzip onnx-1.4.1-*.whl 'onnx/backend/test/data/node/*'

gives the older forms. The last SUITE is the one whose models are tried with other
element types. Needs the packages `onnx` and `onnxruntime`.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
OUT = os.path.join(ROOT, "import", "data", "onnx-operators.tsv")
OLDEST = 7
NAMES = {
    "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool", "string": "str",
    "complex64": "c64", "complex128": "c128", "float8e4m3fn": "f8e4m3fn", "float8e4m3fnuz": "f8e4m3fnuz",
    "float8e5m2": "f8e5m2", "float8e5m2fnuz": "f8e5m2fnuz", "float8e8m0": "f8e8m0", "float4e2m1": "f4e2m1",
    **{f"{sign}int{bits}": f"{'u' if sign else 'i'}{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)},
}


def schemas():
    """(domain, operator) to its definitions, oldest first."""
    found = defaultdict(list)
    for s in onnx.defs.get_all_schemas_with_history():
        found[s.domain, s.name].append(s)
    import onnxruntime.capi.onnxruntime_pybind11_state as ort
    for s in ort.get_all_operator_schema():
        if s.domain == "com.microsoft":
            found[s.domain, s.name].append(s)
    for versions in found.values():
        versions.sort(key=lambda s: s.since_version)
    return found


def versions(definitions, domain):
    """Those in effect from the oldest opset that is read on."""
    all_ = sorted({s.since_version for s in definitions})
    if domain:
        return all_
    before = [v for v in all_ if v <= OLDEST]
    return before[-1:] + [v for v in all_ if v > OLDEST]


def element_types(schema):
    """The element types of the first argument, or of the first result."""
    formals = list(schema.inputs) or list(schema.outputs)
    if not formals:
        return []
    names = formals[0].types if hasattr(formals[0], "types") else []
    out = set()
    for text in names:
        inner = text
        for wrapper in ("optional(", "seq(", "tensor("):
            if inner.startswith(wrapper):
                inner = inner[len(wrapper):-1]
        if inner in NAMES:
            out.add(NAMES[inner])
    return order(out)


def order(types):
    return [t for t in NAMES.values() if t in types]


def domain_of(name):
    return "" if name == "ai.onnx" else name


def nodes(graph):
    for node in graph.node:
        yield node
        for a in node.attribute:
            for g in [a.g, *a.graphs]:
                yield from nodes(g)


def passing(kiln, suite):
    """Names of the cases of a suite that pass."""
    run = subprocess.run([kiln, "verify", "--suite", suite, "--json"], capture_output=True, text=True)
    notes = {note.split(":")[0].split()[1] for note in json.loads(run.stdout)["notes"]}
    names = {n for n in os.listdir(suite) if os.path.exists(os.path.join(suite, n, "model.onnx"))}
    return names - notes


def tested(kiln, suites, found):
    """Versions of each operator of which a case passes."""
    out = defaultdict(set)
    for suite in suites:
        for name in sorted(passing(kiln, suite)):
            model = onnx.load(os.path.join(suite, name, "model.onnx"))
            opsets = {domain_of(o.domain): o.version for o in model.opset_import}
            for node in nodes(model.graph):
                key = (domain_of(node.domain), node.op_type)
                now = [s.since_version for s in found.get(key, []) if s.since_version <= opsets.get(key[0], 0)]
                if now:
                    out[key].add(max(now))
    return out


class Template:
    """A model of one node, whose first argument's element type can be changed."""

    def __init__(self, folder, found):
        self.model = onnx.load(os.path.join(folder, "model.onnx"))
        graph = self.model.graph
        node = graph.node[0]
        self.key = (domain_of(node.domain), node.op_type)
        opset = {domain_of(o.domain): o.version for o in self.model.opset_import}[self.key[0]]
        self.schema = [s for s in found[self.key] if s.since_version <= opset][-1]
        # What has no argument takes its type from an attribute, what has a body
        # computes what that says, and BitCast's attribute says which types fit.
        bodies = any(a.type == a.GRAPH for a in node.attribute)
        if not self.schema.inputs or bodies or node.op_type == "BitCast":
            raise KeyError(self.key)
        self.variable = self.schema.inputs[0].type_str
        self.varied = set()
        for names, declared in ((node.input, self.schema.inputs), (node.output, self.schema.outputs)):
            for i, name in enumerate(names):
                formal = declared[min(i, len(declared) - 1)]
                if formal.type_str == self.variable:
                    self.varied.add(name)
        self.data = {}
        for i, info in enumerate(graph.input):
            path = os.path.join(folder, "test_data_set_0", f"input_{i}.pb")
            if info.type.HasField("tensor_type"):
                with open(path, "rb") as f:
                    self.data[info.name] = onnx.load_tensor_from_string(f.read())

    def with_type(self, number, fixed):
        """The model of this element type; arguments that `fixed` picks are constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for info in [*graph.input, *graph.output]:
            if info.name in self.varied and number is not None:
                info.type.tensor_type.elem_type = number
        constants = [i for i in graph.input if i.name in self.data and fixed(i.name, self.data[i.name])]
        for info in constants:
            value = self.data[info.name]
            if info.name in self.varied and number is not None:
                array = numpy_helper.to_array(value).astype(helper.tensor_dtype_to_np_dtype(number))
                value = numpy_helper.from_array(array, info.name)
            value.name = info.name
            graph.initializer.append(value)
            graph.input.remove(info)
        return model


def compiles(kiln, model, folder):
    path = os.path.join(folder, "model.onnx")
    onnx.save(model, path)
    run = subprocess.run([kiln, "compile", path, "-o", os.path.join(folder, "out")], capture_output=True)
    return run.returncode == 0


def compiled_types(kiln, folder, found, scratch):
    """The element types with which a case's model compiles; None where it is not of
    that kind."""
    try:
        t = Template(folder, found)
    except (KeyError, IndexError, AttributeError):
        return None
    small = lambda value: int(np.prod(value.dims)) <= 64 and len(value.dims) <= 1
    ways = [
        lambda name, value: False,
        lambda name, value: name not in t.varied and small(value),
        lambda name, value: small(value) and name != t.model.graph.node[0].input[0],
        lambda name, value: small(value),
    ]
    fixed = next((w for w in ways if compiles(kiln, t.with_type(None, w), scratch)), None)
    if fixed is None:
        return None
    numbers = {v: TensorProto.DataType.Value(k.upper()) for k, v in NAMES.items()}
    out = set()
    for name in element_types(t.schema):
        try:
            model = t.with_type(numbers[name], fixed)
        except (TypeError, ValueError):
            continue
        if compiles(kiln, model, scratch):
            out.add(name)
    return out


def all_compiled(kiln, suite, found, passed):
    """The element types that each operator compiles with: of two of its cases, of the
    newest definition where there are."""
    out, cases = defaultdict(set), defaultdict(list)
    for name in sorted(passed):
        model = onnx.load(os.path.join(suite, name, "model.onnx"))
        if len(model.graph.node) == 1:
            node = model.graph.node[0]
            opset = {domain_of(o.domain): o.version for o in model.opset_import}[domain_of(node.domain)]
            cases[domain_of(node.domain), node.op_type].append((-opset, name))
    with tempfile.TemporaryDirectory() as scratch:
        for key, all_ in sorted(cases.items()):
            tried = (compiled_types(kiln, os.path.join(suite, n), found, scratch) for _, n in sorted(all_))
            tried = list(itertools.islice((types for types in tried if types is not None), 2))
            out[key] = set().union(*tried)
            print(key, order(out[key]), file=sys.stderr)
    return out


def main():
    kiln, suites = sys.argv[1], sys.argv[2:]
    found = schemas()
    seen = tested(kiln, suites, found)
    types = all_compiled(kiln, suites[-1], found, passing(kiln, suites[-1]))
    lines = ["# domain\toperator\tversions\tof which tested\telement types\tof which compiled"]
    for (domain, op), definitions in sorted(found.items()):
        mine = versions(definitions, domain)
        columns = [
            domain or "ai.onnx", op, *(",".join(str(v) for v in mine if known(v)) for known in (
                lambda v: True, lambda v: v in seen[domain, op])),
            ",".join(element_types(definitions[-1])), ",".join(order(types[domain, op])),
        ]
        lines.append("\t".join(columns))
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
