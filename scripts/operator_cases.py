#!/usr/bin/env python3
"""Writes cases for the operators of the domain `ai.onnx.ml` that are arithmetic on
numbers, and for those of ONNX that its own node tests hardly cover, and what ONNX
Runtime's kernels make of them.

    operator_cases.py OUT_DIR

Prints how many were written. Exits with 3 where numpy, onnx or onnxruntime are not
installed.
"""

import sys

from case_writer import TensorProto, Writer, helper, np, plain
from case_writer import node as any_node

RNG = np.random.default_rng(13)
W = Writer(sys.argv[1], {"ai.onnx.ml": 3})
case = W.case
NAN = float("nan")
TRANSFORMS = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"]


def node(op, inputs, outputs, **attrs):
    return any_node(op, inputs, outputs, "ai.onnx.ml", **attrs)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def floats(*shape):
    return [float(v) for v in f32(*shape).ravel()]


def features():
    x = [{"x": f32(5, 3)}, {"x": f32(1, 3)}]
    whole = {"x": RNG.integers(-3, 4, (4, 3)).astype(np.int64)}
    case("scaler", node("Scaler", "x", "y", offset=[1.0, 2.0, 3.0], scale=[0.5, 2.0, 1.0]), "x:f[n,3]", "y", x)
    case("scaler-one", node("Scaler", "x", "y", offset=[1.0], scale=[0.5]), "x:f[n,3]", "y", x)
    case("scaler-integers", node("Scaler", "x", "y", offset=[1.0], scale=[0.5]), "x:i[n,3]", "y", whole)
    for norm in ["MAX", "L1", "L2"]:
        rows = {"x": np.concatenate([f32(4, 3), np.zeros((1, 3), np.float32), -np.abs(f32(1, 3))])}
        case(f"normalizer-{norm}", node("Normalizer", "x", "y", norm=norm), "x:f[n,3]", "y", rows)
    case("normalizer-integers", node("Normalizer", "x", "y", norm="L2"), "x:i[n,3]", "y", whole)
    gaps = f32(4, 3)
    gaps[1, 0] = gaps[3, 2] = NAN
    case("imputer-nan", node("Imputer", "x", "y", imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=NAN),
         "x:f[n,3]", "y", {"x": gaps})
    case("imputer-one", node("Imputer", "x", "y", imputed_value_floats=[7.0], replaced_value_float=1.0),
         "x:f[n,3]", "y", {"x": np.array([[1, 2, 3], [4, 1, 1]], np.float32)})
    case("imputer-integers", node("Imputer", "x", "y", imputed_value_int64s=[7, 8, 9], replaced_value_int64=1),
         "x:i[n,3]", "y", {"x": np.array([[1, 2, 3], [4, 1, 1]])})
    case("one-hot", node("OneHotEncoder", "x", "y", cats_int64s=[1, 2, 5]), "x:i[n]", "y",
         {"x": np.array([1, 5, 9, 2])})
    case("one-hot-2d", node("OneHotEncoder", "x", "y", cats_int64s=[1, 2, 5]), "x:f[n,m]", "y",
         {"x": np.array([[1.5, 5], [9, 2]], np.float32)})
    case("one-hot-known", node("OneHotEncoder", "x", "y", cats_int64s=[1, 2, 5], zeros=0), "x:i[n]", "y",
         {"x": np.array([1, 5, 5, 2])})
    case("vectorizer", node("FeatureVectorizer", "a b", "y", inputdimensions=[3, 2]), "a:f[n,3] b:i[n,2]", "y",
         {"a": f32(4, 3), "b": RNG.integers(0, 9, (4, 2))}, reference=[
             any_node("Cast", "b", "c", "", to=TensorProto.FLOAT), any_node("Concat", "a c", "y", "", axis=1)])
    case("labels-int-float", node("LabelEncoder", "x", "y", keys_int64s=[1, 2, 2], values_floats=[0.5, 1.5, 2.5],
                                  default_float=-3.0), "x:i[n]", "y", {"x": np.array([1, 2, 3, 1])})
    case("labels-float-int", node("LabelEncoder", "x", "y", keys_floats=[1.0, 2.5], values_int64s=[5, 6]),
         "x:f[n,m]", "y", {"x": np.array([[1, 2.5], [NAN, 2]], np.float32)})
    case("labels-int-int", node("LabelEncoder", "x", "y", keys_int64s=list(range(0, 600, 2)),
                                values_int64s=list(range(300)), default_int64=9), "x:i[n]", "y",
         {"x": RNG.integers(0, 600, 40)})


def linear():
    x = [{"x": f32(6, 3)}, {"x": f32(1, 3)}]
    whole = {"x": RNG.integers(-3, 4, (4, 3)).astype(np.int64)}
    for transform in TRANSFORMS:
        post = {"post_transform": transform}
        for targets in [1, 3]:
            case(f"linear-regressor-{targets}-{transform}", node(
                "LinearRegressor", "x", "y", coefficients=floats(targets, 3), intercepts=floats(targets),
                targets=targets, **post), "x:f[n,3]", "y", x)
        for sets, labels in [(1, [5, 7]), (2, [5, 7]), (4, [3, 1, 4, 9])]:
            case(f"linear-classifier-{sets}-{transform}", node(
                "LinearClassifier", "x", "y z", coefficients=floats(sets, 3), intercepts=floats(sets),
                classlabels_ints=labels, **post), "x:f[n,3]", "y z", x)
    case("linear-regressor-plain", node("LinearRegressor", "x", "y", coefficients=floats(3)), "x:f[n,3]", "y", x)
    case("linear-classifier-integers", node(
        "LinearClassifier", "x", "y z", coefficients=floats(3, 3), intercepts=floats(3), classlabels_ints=[0, 1, 2]),
        "x:i[n,3]", "y z", whole)


def support_vectors():
    x = [{"x": f32(6, 3)}, {"x": f32(1, 3)}]
    for kind, params in [("LINEAR", [0.0, 0.0, 0.0]), ("POLY", [0.5, 1.0, 3.0]), ("RBF", [0.2, 0.0, 0.0]),
                         ("SIGMOID", [0.1, 0.2, 0.0])]:
        base = {"kernel_type": kind, "kernel_params": params}
        four = {"support_vectors": floats(4, 3), "coefficients": floats(4), "rho": [0.3]}
        case(f"svm-regressor-{kind}", node("SVMRegressor", "x", "y", n_supports=4, **four, **base), "x:f[n,3]", "y", x)
        case(f"svm-one-class-{kind}", node("SVMRegressor", "x", "y", n_supports=4, one_class=1, **four, **base),
             "x:f[n,3]", "y", x)
        two = {"classlabels_ints": [5, 7], "vectors_per_class": [2, 2], **four}
        case(f"svm-classifier-{kind}", node("SVMClassifier", "x", "y z", **two, **base), "x:f[n,3]", "y z", x)
        three = {"classlabels_ints": [5, 7, 2], "vectors_per_class": [2, 1, 2], "support_vectors": floats(5, 3),
                 "coefficients": floats(2, 5), "rho": floats(3)}
        case(f"svm-classifier-three-{kind}", node("SVMClassifier", "x", "y z", **three, **base), "x:f[n,3]", "y z", x)
    case("svm-classifier-probability", node("SVMClassifier", "x", "y z", prob_a=[-1.5], prob_b=[0.2], **two, **base),
         "x:f[n,3]", "y z", x)
    case("svm-classifier-three-probability", node(
        "SVMClassifier", "x", "y z", prob_a=[-1.5, -0.7, -1.1], prob_b=[0.2, 0.1, -0.3], **three, **base),
        "x:f[n,3]", "y z", x)
    case("svm-classifier-logistic", node("SVMClassifier", "x", "y z", post_transform="LOGISTIC", **two, **base),
         "x:f[n,3]", "y z", x)
    case("svm-regressor-no-vectors", node("SVMRegressor", "x", "y", coefficients=floats(3), rho=[0.4], n_supports=0,
                                          kernel_type="LINEAR", kernel_params=[0.0, 0.0, 0.0]), "x:f[n,3]", "y", x)


def forest(trees, depth, features, modes=("BRANCH_LEQ",), missing=False):
    """Random trees: the nodes' attributes, and each tree's leaves."""
    out = {k: [] for k in ["treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids"]}
    tracks, leaves = [], []
    for tree in range(trees):
        nodes = []

        def grow(level):
            at = len(nodes)
            nodes.append(None)
            if level == depth or (level > 0 and RNG.random() < 0.25):
                nodes[at] = (0, "LEAF", 0.0, 0, 0)
                leaves.append((tree, at))
            else:
                yes = grow(level + 1)
                no = grow(level + 1)
                split = float(np.float32(RNG.integers(-4, 5) / 4))
                nodes[at] = (int(RNG.integers(features)), str(RNG.choice(modes)), split, yes, no)
            return at

        grow(0)
        for i, (feature, mode, value, yes, no) in enumerate(nodes):
            for key, v in zip(out, [tree, i, feature, mode, value, yes, no]):
                out[key].append(v)
            tracks.append(int(RNG.integers(2)))
    attrs = {f"nodes_{k}": v for k, v in out.items()}
    if missing:
        attrs["nodes_missing_value_tracks_true"] = tracks
    return attrs, leaves


def votes(prefix, leaves, targets, per_leaf=None, positive=False):
    """Each leaf votes for `targets`, or for one of them by its tree."""
    ids = [(t, n, c) for t, n in leaves for c in (targets if per_leaf is None else per_leaf(t))]
    weights = [float(np.float32(abs(w) if positive else w)) for w in RNG.standard_normal(len(ids))]
    return {f"{prefix}_treeids": [i[0] for i in ids], f"{prefix}_nodeids": [i[1] for i in ids],
            f"{prefix}_ids": [i[2] for i in ids], f"{prefix}_weights": weights}


def trees():
    def grid(n):
        return RNG.integers(-5, 6, (n, 4)).astype(np.float32) / 4

    x = [{"x": grid(40)}, {"x": grid(1)}]
    every = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
    for mode in every:
        nodes, leaves = forest(3, 4, 4, [mode])
        case(f"trees-{mode}", node("TreeEnsembleRegressor", "x", "y", n_targets=1, **nodes, **votes("target", leaves, [0])),
             "x:f[n,4]", "y", x)
    nodes, leaves = forest(5, 5, 4, every)
    case("trees-modes", node("TreeEnsembleRegressor", "x", "y", n_targets=1, **nodes, **votes("target", leaves, [0])),
         "x:f[n,4]", "y", x)
    nodes, leaves = forest(5, 5, 4, ["BRANCH_LEQ"], True)
    gaps = grid(40)
    gaps[RNG.random(gaps.shape) < 0.2] = NAN
    case("trees-missing", node("TreeEnsembleRegressor", "x", "y", n_targets=1, **nodes, **votes("target", leaves, [0])),
         "x:f[n,4]", "y", {"x": gaps})
    nodes, leaves = forest(6, 5, 4)
    for how in ["SUM", "AVERAGE", "MIN", "MAX"]:
        case(f"trees-{how}", node("TreeEnsembleRegressor", "x", "y", n_targets=1, aggregate_function=how, base_values=[0.5],
                                  **nodes, **votes("target", leaves, [0])), "x:f[n,4]", "y", x)
        case(f"trees-{how}-three", node(
            "TreeEnsembleRegressor", "x", "y", n_targets=3, aggregate_function=how, base_values=[0.5, 0.25, -1.0],
            **nodes, **votes("target", leaves, [0, 1, 2])), "x:f[n,4]", "y", x)
        some = votes("target", leaves, [], lambda t: [int(RNG.integers(3))])
        case(f"trees-{how}-some", node(
            "TreeEnsembleRegressor", "x", "y", n_targets=3, aggregate_function=how, **nodes, **some),
            "x:f[n,4]", "y", x)
    for transform in TRANSFORMS:
        case(f"trees-regressor-{transform}", node(
            "TreeEnsembleRegressor", "x", "y", n_targets=2, post_transform=transform, **nodes,
            **votes("target", leaves, [0, 1])), "x:f[n,4]", "y", x)
        post = {"post_transform": transform}
        three = votes("class", leaves, [], lambda t: [t % 3])
        case(f"trees-classifier-{transform}", node(
            "TreeEnsembleClassifier", "x", "y z", classlabels_int64s=[5, 7, 9], base_values=[0.1, 0.2, -0.1],
            **post, **nodes, **three), "x:f[n,4]", "y z", x)
        case(f"trees-classifier-all-{transform}", node(
            "TreeEnsembleClassifier", "x", "y z", classlabels_int64s=[5, 7, 9], **post, **nodes,
            **votes("class", leaves, [0, 1, 2], positive=True)), "x:f[n,4]", "y z", x)
        for target in [0, 1]:
            for positive in [False, True]:
                name = f"trees-binary-{target}-{'positive' if positive else 'mixed'}-{transform}"
                case(name, node(
                    "TreeEnsembleClassifier", "x", "y z", classlabels_int64s=[5, 7], **post, **nodes,
                    **votes("class", leaves, [target], positive=positive)), "x:f[n,4]", "y z", x)
        case(f"trees-binary-base-{transform}", node(
            "TreeEnsembleClassifier", "x", "y z", classlabels_int64s=[5, 7], base_values=[0.25], **post, **nodes,
            **votes("class", leaves, [0])), "x:f[n,4]", "y z", x)
    case("trees-one-leaf", node(
        "TreeEnsembleRegressor", "x", "y", n_targets=1, nodes_treeids=[0], nodes_nodeids=[0], nodes_featureids=[0],
        nodes_modes=["LEAF"], nodes_values=[0.0], nodes_truenodeids=[0], nodes_falsenodeids=[0], target_treeids=[0],
        target_nodeids=[0], target_ids=[0], target_weights=[2.5]), "x:f[n,4]", "y", x)
    # Integers have no kernel: the same as floats.
    vote = votes("target", leaves, [0])
    case("trees-integers", node("TreeEnsembleRegressor", "x", "y", n_targets=1, **nodes, **vote), "x:i[n,4]", "y",
         {"x": RNG.integers(-2, 3, (9, 4))}, reference=[
             any_node("Cast", "x", "f", "", to=TensorProto.FLOAT),
             node("TreeEnsembleRegressor", "f", "y", n_targets=1, **nodes, **vote)])
    doubles()


def doubles():
    """Opset 3's thresholds and weights as doubles."""
    def double(values):
        return helper.make_tensor("t", TensorProto.DOUBLE, [len(values)], values)

    nodes, leaves = forest(4, 4, 4)
    nodes["nodes_values_as_tensor"] = double(nodes.pop("nodes_values"))
    vote = votes("target", leaves, [0])
    vote["target_weights_as_tensor"] = double(vote.pop("target_weights"))
    case("trees-doubles", node("TreeEnsembleRegressor", "x", "y", n_targets=1, **nodes, **vote), "x:d[n,4]", "y",
         {"x": (RNG.integers(-5, 6, (9, 4)) / 4).astype(np.float64)})


def determinants():
    for n in [3, 5, 8]:
        sets = [{"x": f32(3, n, n)}, {"x": f32(1, n, n)}]
        case(f"det-{n}", plain("Det", "x", "y"), f"x:f[b,{n},{n}]", "y", sets)
    case("det-open", plain("Det", "x", "y"), "x:f[n,n]", "y", [{"x": f32(n, n)} for n in (1, 2, 6)])
    swapped = np.eye(6, dtype=np.float32)[::-1].copy()
    twice = f32(6, 6)
    twice[3] = twice[1]
    case("det-pivots", plain("Det", "x", "y"), "x:f[b,6,6]", "y", {"x": np.stack([swapped, np.eye(6, dtype=np.float32)])})
    case("det-singular", [plain("Det", "x", "d"), plain("Mul", "d none", "y")], "x:f[b,6,6]", "y",
         {"x": twice[None]}, {"none": np.float32(1e-6)})


def unique():
    for name, kind, values in [("f", "f", RNG.integers(-3, 4, 20).astype(np.float32)),
                               ("i", "i", RNG.integers(-3, 4, 20)), ("s", "s", RNG.integers(-3, 4, 20).astype(np.int8))]:
        for order in [0, 1]:
            case(f"unique-{name}-{order}", plain("Unique", "x", "y a b c", sorted=order), f"x:{kind}[n]", "y a b c",
                 [{"x": values}, {"x": values[:1]}])
    rows = RNG.integers(0, 2, (12, 3)).astype(np.float32)
    for axis, x in [(0, rows), (1, rows.T.copy())]:
        for order in [0, 1]:
            case(f"unique-rows-{axis}-{order}", plain("Unique", "x", "y a b c", axis=axis, sorted=order), "x:f[n,m]",
                 "y a b c", {"x": x})
    case("unique-then", [plain("Unique", "x", "u"), plain("Mul", "u u", "y")], "x:f[n,m]", "y", {"x": rows})


def deformable():
    base = {"x": f32(2, 4, 6, 7), "o": f32(2, 12, 5, 6)}
    w = {"w": f32(6, 4, 2, 3), "b": f32(6)}
    shape = "x:f[n,4,h,v] o:f[n,12,p,q]"
    op = "DeformConv"
    case("deform", plain(op, "x w o", "y"), shape, "y", {"x": base["x"], "o": f32(2, 12, 5, 5)}, w)
    case("deform-pads", plain(op, "x w o b", "y", pads=[1, 0, 0, 1]), shape, "y", {"x": base["x"], "o": f32(2, 12, 6, 6)}, w)
    case("deform-mask", plain(op, "x w o b m", "y"), shape + " m:f[n,6,p,q]", "y",
         {"x": base["x"], "o": 3 * f32(2, 12, 5, 5), "m": f32(2, 6, 5, 5)}, w)
    case("deform-strides", plain(op, "x w o b", "y", strides=[2, 1], dilations=[1, 2]), shape, "y",
         {"x": base["x"], "o": f32(2, 12, 3, 3)}, w)
    case("deform-groups", plain(op, "x w o b m", "y", group=2, offset_group=2, pads=[0, 1, 1, 1]),
         "x:f[n,4,h,v] o:f[n,24,p,q] m:f[n,12,p,q]", "y",
         {"x": base["x"], "o": f32(2, 24, 6, 7), "m": f32(2, 12, 6, 7)}, {"w": f32(6, 2, 2, 3), "b": f32(6)})


def regions():
    x = f32(2, 3, 10, 12)
    rois = np.array([[1, 1, 9, 8], [0, 2, 3, 3], [2.5, 0.5, 11, 9.5], [4, 4, 4.2, 4.1]], np.float32)
    feed = {"x": x, "r": rois, "b": np.array([0, 1, 1, 0])}
    shape = "x:f[n,3,h,v] r:f[k,4] b:i[k]"
    for name, attrs in [("", {}), ("-pixel", {"coordinate_transformation_mode": "output_half_pixel"}),
                        ("-max", {"mode": "max"}), ("-scaled", {"spatial_scale": 0.5}), ("-two", {"sampling_ratio": 2})]:
        case("roi-align" + name, plain("RoiAlign", "x r b", "y", output_height=3, output_width=2, **attrs), shape, "y", feed)


def blocks():
    x = {"x": RNG.integers(-99, 99, 16).astype(np.int8)}
    consts = {"s": np.abs(f32(8)) + np.float32(0.1), "z": RNG.integers(-5, 5, 8).astype(np.int8)}
    case("dequantize-vector-blocks", plain("DequantizeLinear", "x s z", "y", axis=0, block_size=2), "x:s[n]", "y", x, consts)


def convolutions():
    """With constant filters, which are packed; the standard's tests give them as inputs.
    Quarters, whose sums are exact in any order."""
    def quarters(*shape):
        return (RNG.integers(-8, 9, shape) / 4).astype(np.float32)

    def both(name, op, shape, sizes, filters, bias, **attrs):
        feeds = [{"x": quarters(*size)} for size in sizes]
        case(name, plain(op, "x w b", "y", **attrs), shape, "y", feeds, {"w": quarters(*filters), "b": quarters(bias)})
    plane, sizes = "x:f[n,6,h,v]", [(1, 6, 9, 11), (3, 6, 17, 6)]
    both("conv-padded", "Conv", plane, sizes, (20, 6, 3, 3), 20, pads=[1, 1, 1, 1])
    both("conv-few-channels", "Conv", "x:f[n,3,h,v]", [(2, 3, 9, 11)], (20, 3, 5, 3), 20, pads=[2, 1, 1, 0], strides=[2, 1])
    both("conv-groups", "Conv", plane, sizes, (8, 3, 3, 2), 8, group=2, dilations=[2, 1], pads=[2, 0, 1, 1])
    both("conv-depthwise", "Conv", plane, sizes, (6, 1, 5, 5), 6, group=6, pads=[2, 2, 2, 2], strides=[2, 1])
    both("conv-channels-twice", "Conv", plane, sizes, (12, 1, 3, 3), 12, group=6)
    both("conv-same", "Conv", plane, sizes, (5, 6, 4, 3), 5, auto_pad="SAME_LOWER", strides=[2, 3])
    both("conv-line", "Conv", "x:f[n,5,h]", [(2, 5, 30)], (7, 5, 9), 7, pads=[4, 4], strides=[3])
    both("conv-space", "Conv", "x:f[n,4,d,h,v]", [(2, 4, 5, 6, 7)], (6, 4, 2, 3, 3), 6, pads=[0, 1, 1, 1, 1, 0])
    both("transposed-twice", "ConvTranspose", plane, sizes, (6, 5, 2, 2), 5, strides=[2, 2])
    both("transposed-overlap", "ConvTranspose", plane, sizes, (6, 5, 4, 3), 5, strides=[2, 3], pads=[1, 0, 1, 1])
    both("transposed-longer", "ConvTranspose", plane, sizes, (6, 5, 3, 3), 5, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    both("transposed-gaps", "ConvTranspose", plane, sizes, (6, 5, 1, 2), 5, strides=[3, 3], output_padding=[2, 0])
    both("transposed-groups", "ConvTranspose", plane, sizes, (6, 2, 3, 3), 4, group=2, strides=[2, 2])
    both("transposed-line", "ConvTranspose", "x:f[n,4,h]", [(2, 4, 9)], (4, 3, 8), 3, strides=[4], pads=[2, 2])


def borders():
    case("average-of-border", plain("AveragePool", "x", "y", kernel_shape=[2], dilations=[2], pads=[1, 1]),
         "x:f[b,3,n]", "y", [{"x": f32(2, 3, n)} for n in (1, 4)], opset=19)
    for n in (1, 2, 3):
        case(f"resize-to-one-{n}", plain("Resize", "x none none sizes", "y", mode="cubic",
                                         coordinate_transformation_mode="pytorch_half_pixel"),
             f"x:f[b,3,{n},5]", "y", {"x": f32(2, 3, n, 5)},
             {"none": np.zeros(0, np.float32), "sizes": np.array([2, 3, 1, 2])}, opset=11)


def meetings():
    """Extents that data decides, which may be 1 and then broadcast."""
    one, four = np.zeros(5, np.float32), np.array([1, 3, 1, 7, 4], np.float32)
    kept = plain("Unique", "x", "u")
    each = [{"x": one, "y": f32(4)}, {"x": four, "y": f32(4)}, {"x": four, "y": f32(1)}, {"x": one, "y": f32(1)}]
    case("meets-caller", [kept, plain("Sub", "u y", "z")], "x:f[n] y:f[m]", "z", each)
    case("meets-caller-none", [kept, plain("Sub", "u y", "z")], "x:f[n] y:f[m]", "z", {"x": one, "y": f32(0)})
    case("meets-constant", [kept, plain("Max", "u c", "z")], "x:f[n]", "z", [{"x": one}, {"x": four}], {"c": f32(3, 4)})
    both = [{"x": a, "y": b} for a in (one, four) for b in (one, four)]
    twice = [kept, plain("Unique", "y", "v"), plain("Less", "u v", "l"), plain("Where", "l u v", "w"), plain("Mul", "w u", "z")]
    case("meets-data", twice, "x:f[n] y:f[m]", "z", both)
    wide = [{"x": a, "k": np.array([2, k])} for a, k in ((one, 4), (four, 4), (four, 1), (one, 1))]
    case("meets-expand", [kept, plain("Expand", "u k", "z")], "x:f[n] k:i[2]", "z", wide)


for group in [features, linear, support_vectors, trees, determinants, unique, deformable, regions, blocks, convolutions, borders,
              meetings]:
    group()
print(W.count, "cases written")
