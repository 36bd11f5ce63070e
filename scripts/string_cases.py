#!/usr/bin/env python3
"""Writes cases of strings, and what ONNX Runtime's kernels make of them.

    string_cases.py OUT_DIR

Left out is what its kernels answer otherwise than the standard's reference does: an
empty string is cut into no pieces there, white space is spaces alone, and cut off
behind the last piece; a number may have something behind it; results stacked by no step
have no extents; a string that a scan carries on through StringConcat is written over.
Changes of case are made in the locale C: others are not installed everywhere. Prints how many were written. Exits with 3 where numpy, onnx or
onnxruntime are not installed.
"""

import sys

from case_writer import TensorProto, Writer, helper, np, plain, tensor
from case_writer import node as any_node

W = Writer(sys.argv[1], {"ai.onnx.ml": 4})
case = W.case
NAN = float("nan")
WORDS = ["", "a", "A", "naïve", "naïve café", "日本語", "🙂", "a b", " a", "a,b", "Ünï", "ß", "e\u0301", "x\ny"]


def ml(op, inputs, outputs, **attrs):
    return any_node(op, inputs, outputs, "ai.onnx.ml", **attrs)


def text(*words, shape=None):
    return np.array(words, dtype=object).reshape(shape or [len(words)])


def words(*shape, seed=0):
    """Words of all kinds, some of them equal."""
    rng = np.random.default_rng(seed)
    picked = [WORDS[i] for i in rng.integers(0, len(WORDS), int(np.prod(shape)))]
    return text(*picked, shape=shape)


def joins():
    concat = plain("StringConcat", "x y", "z")
    case("concat", concat, "x:t[n] y:t[n]", "z", [{"x": words(n), "y": words(n, seed=1)} for n in (1, 5, 19, 0)])
    case("concat-broadcast", concat, "x:t[n,1] y:t[m]", "z",
         [{"x": words(n, 1), "y": words(m, seed=1)} for n, m in [(3, 4), (1, 1), (0, 2), (2, 0)]])
    case("concat-scalar", concat, "x:t[n,m] y:t[]", "z", {"x": words(2, 3), "y": np.array("é", object)})
    case("concat-constant", concat, "x:t[n]", "z", [{"x": words(4)}, {"x": words(1)}], {"y": text(" 🙂")})
    case("concat-twice", [plain("StringConcat", "x x", "a"), plain("StringConcat", "a x", "z")], "x:t[n]", "z",
         {"x": words(9)})


def pieces():
    texts = ["a,b,c", ",a,,b,", "a", " x y  z", "日,本", ";;a;;b;;;", "a;;b", ",", " q  r"]
    for delimiter in [None, "", ",", ";;", " ", "本"]:
        for most in [None, 1, 2, -1]:
            attrs = {k: v for k, v in [("delimiter", delimiter), ("maxsplit", most)] if v is not None}
            sets = [{"x": text(*texts)}, {"x": text(*texts[:1])}, {"x": text(*texts[:8], shape=[2, 4])[1]},
                    {"x": text()}]
            name = "".join(f"-{v}" for v in ["space" if delimiter in (None, "", " ") else "sign", len(delimiter or ""), most])
            case(f"split{name}-{delimiter is None}-{ord((delimiter or 'x')[0])}", plain("StringSplit", "x", "y n", **attrs),
                 "x:t[n]", "y:t n:i", sets)
    case("split-rows", plain("StringSplit", "x", "y n", delimiter=","), "x:t[n,m]", "y:t n:i",
         [{"x": text(*texts[:8], shape=[2, 4])}, {"x": text(*texts[:2], shape=[2, 1])}])
    # What is made of pieces: they have a size that data decides.
    case("split-then", [plain("StringSplit", "x", "y n"), plain("StringConcat", "y sign", "z"),
                        plain("Equal", "y word", "e"), plain("Transpose", "z", "t", perm=[1, 0])],
         "x:t[n]", "z:t e:b t:t", [{"x": text("a b", "c a d", "a")}, {"x": text("q")}],
         {"sign": text("!"), "word": text("a")})


def normalized():
    days = text("Monday", "monday", "TUESDAY", "wed", "", "é É")
    for action in ["NONE", "LOWER", "UPPER"]:
        for sensitive in [0, 1]:
            attrs = {"case_change_action": action, "is_case_sensitive": sensitive, "locale": "C"}
            sets = [{"x": days}, {"x": text("monday")}, {"x": text("a", "monday", "A")}]
            case(f"normalize-{action}-{sensitive}", plain("StringNormalizer", "x", "y", **attrs), "x:t[n]", "y", sets)
            case(f"normalize-stop-{action}-{sensitive}", plain(
                "StringNormalizer", "x", "y", stopwords=["monday", "Wed", "a"], **attrs), "x:t[n]", "y", sets)
    case("normalize-row", plain("StringNormalizer", "x", "y", stopwords=["b"], locale="C"), "x:t[1,n]", "y",
         [{"x": text("a", "B", "c", shape=[1, 3])}, {"x": text("b", shape=[1, 1])}])
    case("normalize-then", [plain("StringNormalizer", "x", "y", stopwords=["b"], locale="C"),
                            plain("StringConcat", "y y", "z")], "x:t[n]", "z", [{"x": text("a", "B", "c")}, {"x": text("b")}])


def matches():
    texts = text("123", "١٢", "é", "ab", "aB", "a_1", "", "a\nb", "www.x.com", "me@yahoo.com", "αβ", " \t", "a-b", "\x0b", "&")
    patterns = [r"\d+", r"\w+", r"\pL+", r"(?i)AB", r"a|ab", r"[a&&b]", r"\s*", r"\S+", r".*", r"(?s).*", r"^a.*$", r"",
                r"[[:alnum:]_]+", r"\bab\b", r"(\W|^)[\w.\-]{0,25}@(yahoo|gmail)\.com(\W|$)", r"\p{Greek}+", r"[^\d]*",
                r"\x{e9}", r"\Qa-b\E", r"(?i)É", r"(?U)a+?.*", r"[\w-]+"]
    for i, pattern in enumerate(patterns):
        case(f"match-{i}", plain("RegexFullMatch", "x", "y", pattern=pattern), "x:t[n]", "y", [{"x": texts}, {"x": texts[:1]}])


def labels():
    x = text("a", "b", "zz", "é", "")
    keys = ["a", "b", "é", "a"]
    numbers = {"x": np.array([1, 2, 9, 3])}
    case("labels-int", ml("LabelEncoder", "x", "y", keys_strings=keys, values_int64s=[7, 8, 9, 10]), "x:t[n]", "y",
         [{"x": x}, {"x": x[:1]}, {"x": text()}])
    case("labels-default", ml("LabelEncoder", "x", "y", keys_strings=keys, values_int64s=[7, 8, 9, 10], default_int64=42),
         "x:t[n,m]", "y", {"x": text(*x[:4], shape=[2, 2])})
    case("labels-float", ml("LabelEncoder", "x", "y", keys_strings=keys, values_floats=[1.5, 2.5, 3.5, 4.5]), "x:t[n]", "y:f", {"x": x})
    case("labels-words", ml("LabelEncoder", "x", "y", keys_strings=keys, values_strings=["A", "B", "É", "?"]), "x:t[n]", "y", {"x": x})
    case("labels-words-default", ml("LabelEncoder", "x", "y", keys_strings=["a"], values_strings=["A"], default_string=""),
         "x:t[n]", "y", {"x": x})
    case("labels-from-int", ml("LabelEncoder", "x", "y", keys_int64s=[1, 2, 3], values_strings=["one", "two", "drei"]),
         "x:i[n]", "y", numbers)
    case("labels-from-float", ml("LabelEncoder", "x", "y", keys_floats=[1.0, 2.5], values_strings=["one", "two"],
                                 default_string="none"), "x:f[n]", "y", {"x": np.array([2.5, 1, NAN], np.float32)})
    case("labels-tensors", ml("LabelEncoder", "x", "y", keys_tensor=tensor(text("a", "é"), "k"),
                              values_tensor=tensor(np.array([3, 4], np.int16), "v"),
                              default_tensor=tensor(np.array([9], np.int16), "d")), "x:t[n]", "y:w", {"x": x})
    case("labels-many", ml("LabelEncoder", "x", "y", keys_strings=[f"w{i}" for i in range(700)],
                           values_int64s=list(range(700))), "x:t[n]", "y", {"x": text(*[f"w{i * 37}" for i in range(25)])})
    cats = {"cats_strings": ["a", "b", "é"], "cats_int64s": [5, 6, 7]}
    case("categories-of-words", ml("CategoryMapper", "x", "y", **cats), "x:t[n]", "y", {"x": x})
    case("categories-of-numbers", ml("CategoryMapper", "x", "y", default_string="?", **cats), "x:i[n]", "y",
         {"x": np.array([5, 7, 1])})
    case("one-hot-words", ml("OneHotEncoder", "x", "y", cats_strings=["a", "b", "é"]), "x:t[n]", "y", [{"x": x}, {"x": x[:2]}])
    case("one-hot-known-words", ml("OneHotEncoder", "x", "y", cats_strings=["a", "b", "é"], zeros=0), "x:t[n]", "y", {"x": x[:2]})
    case("features-of-words", ml("ArrayFeatureExtractor", "x i", "y"), "x:t[n,m] i:i[k]", "y",
         {"x": words(3, 4), "i": np.array([2, 0])})


def classes():
    rng = np.random.default_rng(3)
    x = [{"x": rng.standard_normal((n, 3)).astype(np.float32)} for n in (6, 1)]

    def floats(n):
        return [float(np.float32(v)) for v in rng.standard_normal(n)]

    for names, sets in [(["no", "ja"], 1), (["a", "b", "é"], 3)]:
        case(f"linear-words-{sets}", ml("LinearClassifier", "x", "y z", coefficients=floats(3 * sets), intercepts=floats(sets),
                                        classlabels_strings=names), "x:f[n,3]", "y z", x)
    case("svm-words", ml("SVMClassifier", "x", "y z", classlabels_strings=["no", "ja", "é"], vectors_per_class=[2, 1, 2],
                         support_vectors=floats(15), coefficients=floats(10), rho=floats(3), kernel_type="RBF",
                         kernel_params=[0.2, 0.0, 0.0]), "x:f[n,3]", "y z", x)
    stump = dict(nodes_treeids=[0] * 3, nodes_nodeids=[0, 1, 2], nodes_featureids=[0] * 3,
                 nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.0] * 3, nodes_truenodeids=[1, 0, 0],
                 nodes_falsenodeids=[2, 0, 0], class_treeids=[0, 0], class_nodeids=[1, 2])
    case("tree-words", ml("TreeEnsembleClassifier", "x", "y z", classlabels_strings=["a", "b", "é"], class_ids=[0, 2],
                          class_weights=[1.0, 2.0], **stump), "x:f[n,3]", "y z", x)
    case("tree-two-words", ml("TreeEnsembleClassifier", "x", "y z", classlabels_strings=["no", "ja"], class_ids=[1, 1],
                              class_weights=[0.2, 0.9], **stump), "x:f[n,3]", "y z", x)


def grams():
    pool = ["é", "b", "c", "b", "c", "c", "é", "b", "b"]
    x = text("b", "c", "é", "b", "b", "c", "é", "b", "zz", "")
    for mode in ["TF", "IDF", "TFIDF"]:
        for skips in [0, 2]:
            case(f"grams-{mode}-{skips}", plain(
                "TfIdfVectorizer", "x", "y", mode=mode, min_gram_length=1, max_gram_length=2, max_skip_count=skips,
                ngram_counts=[0, 3], ngram_indexes=[2, 0, 1, 5, 4, 3], pool_strings=pool,
                weights=[1.0, 2.0, 0.5, 3.0, 1.5, 4.0]), "x:t[n,10]", "y", {"x": np.stack([x, x[::-1]])})
    case("grams-vector", plain("TfIdfVectorizer", "x", "y", mode="TF", min_gram_length=2, max_gram_length=2, max_skip_count=0,
                               ngram_counts=[0, 3], ngram_indexes=[0, 1, 2, 3, 4, 5], pool_strings=pool), "x:t[10]", "y", {"x": x})


def numbers():
    values = [0.1, 1, 1e8, 1e-5, 1 / 3, -0.0, NAN, float("inf"), -float("inf"), 123456.789, 1e20, 16777216, 3.4e38, 1e-40, 0.0001]
    to_text = plain("Cast", "x", "y", to=TensorProto.STRING)
    for kind, dtype in [("f", np.float32), ("d", np.float64), ("h", np.float16)]:
        with np.errstate(over="ignore"):
            case(f"text-of-{kind}", to_text, f"x:{kind}[n]", "y", [{"x": np.array(values).astype(dtype)}, {"x": np.zeros(0, dtype)}])
    for kind, dtype in [("i", np.int64), ("j", np.int32), ("w", np.int16), ("s", np.int8), ("u", np.uint8), ("q", np.uint64)]:
        info = np.iinfo(dtype)
        case(f"text-of-{kind}", to_text, f"x:{kind}[n]", "y", {"x": np.array([info.min, 0, 7, info.max], dtype)})
    case("text-of-b", to_text, "x:b[n]", "y", {"x": np.array([True, False])})
    for kind, to in [("f", TensorProto.FLOAT), ("d", TensorProto.DOUBLE), ("h", TensorProto.FLOAT16)]:
        case(f"number-{kind}", plain("Cast", "x", "y", to=to), "x:t[n]", "y",
             {"x": text("1", "-2.5", " 3", "1e3", "1E-2", "inf", "-INF", "NaN", ".5", "5.", "+7", "0.1")})
    for kind, to in [("i", TensorProto.INT64), ("j", TensorProto.INT32), ("s", TensorProto.INT8), ("u", TensorProto.UINT8),
                     ("b", TensorProto.BOOL)]:
        case(f"number-{kind}", plain("Cast", "x", "y", to=to), "x:t[n,2]", "y",
             {"x": text("1", "0", " 3", "100.5", "+7", "126", shape=[3, 2])})
    case("number-like", plain("CastLike", "x l", "y"), "x:t[n]", "y", {"x": text("1", "2")}, {"l": np.float32([0])})
    case("text-like", plain("CastLike", "x l", "y"), "x:i[n]", "y", {"x": np.array([1, 2])}, {"l": text("")})
    # A number written, joined and read again.
    case("number-round", [to_text, plain("StringConcat", "y zero", "z"), plain("Cast", "z", "w", to=TensorProto.INT64)],
         "x:i[n]", "w", {"x": np.array([1, -20, 5])}, {"zero": text("0")})


def moves():
    x = [{"x": words(n, 3, seed=n)} for n in (4, 1, 0)]
    i = {"i": np.array([2, 0, -1])}
    case("move-identity", plain("Identity", "x", "y"), "x:t[n,3]", "y", x)
    case("move-reshape", plain("Reshape", "x s", "y"), "x:t[n,3]", "y", x, {"s": np.array([3, -1])})
    case("move-flatten", plain("Flatten", "x", "y"), "x:t[n,3]", "y", x)
    case("move-transpose", plain("Transpose", "x", "y"), "x:t[n,3]", "y", x)
    case("move-unsqueeze", [plain("Unsqueeze", "x a", "u"), plain("Squeeze", "u a", "y")], "x:t[n,3]", "u y", x, {"a": np.array([1])})
    case("move-gather", plain("Gather", "x i", "y", axis=1), "x:t[n,3] i:i[k]", "y", [{**f, **i} for f in x])
    case("move-gather-elements", plain("GatherElements", "x i", "y", axis=1), "x:t[n,3] i:i[n,2]", "y",
         {"x": words(2, 3), "i": np.array([[0, 2], [1, 1]])})
    case("move-gather-nd", plain("GatherND", "x i", "y"), "x:t[n,3] i:i[k,2]", "y",
         {"x": words(2, 3), "i": np.array([[0, 2], [1, 1], [1, 0]])})
    case("move-concat", plain("Concat", "x y x", "z", axis=0), "x:t[n,3] y:t[m,3]", "z",
         [{**f, "y": words(2, 3, seed=9)} for f in x])
    case("move-where", plain("Where", "c x y", "z"), "c:b[n,1] x:t[n,3] y:t[3]", "z",
         {"c": np.array([[True], [False]]), "x": words(2, 3), "y": words(3, seed=2)})
    case("move-slice", plain("Slice", "x a b c d", "y"), "x:t[n,3]", "y", x[:2],
         {"a": np.array([2]), "b": np.array([-9]), "c": np.array([1]), "d": np.array([-2])})
    case("move-split", plain("Split", "x", "y z", axis=1, num_outputs=2), "x:t[n,4]", "y z", {"x": words(2, 4)})
    case("move-expand", plain("Expand", "x s", "y"), "x:t[n,1]", "y", {"x": words(3, 1)}, {"s": np.array([1, 4])})
    case("move-tile", plain("Tile", "x r", "y"), "x:t[n,3]", "y", x[:2], {"r": np.array([2, 2])})
    case("move-scatter-nd", plain("ScatterND", "x i u", "y"), "x:t[n,3] i:i[k,1] u:t[k,3]", "y",
         {"x": words(3, 3), "i": np.array([[2], [0]]), "u": words(2, 3, seed=4)})
    case("move-scatter-elements", plain("ScatterElements", "x i u", "y", axis=1), "x:t[n,3] i:i[n,1] u:t[n,1]", "y",
         {"x": words(2, 3), "i": np.array([[2], [-3]]), "u": words(2, 1, seed=4)})
    case("move-compress", plain("Compress", "x c", "y", axis=0), "x:t[n,3] c:b[n]", "y",
         {"x": words(3, 3), "c": np.array([True, False, True])})
    case("sizes", [plain("Shape", "x", "s"), plain("Size", "x", "n")], "x:t[n,3]", "s n", x)
    case("equal", plain("Equal", "x y", "z"), "x:t[n,3] y:t[n,3]", "z", [{**f, "y": words(*f["x"].shape, seed=7)} for f in x])
    case("equal-itself", [plain("Equal", "x y", "z"), plain("Not", "z", "w")], "x:t[n] y:t[]", "w",
         {"x": text("é", "e\u0301", "é"), "y": np.array("é", object)})
    case("one-hot-of-words", plain("OneHot", "i d v", "y"), "i:i[n]", "y", {"i": np.array([0, 2, 1])},
         {"d": np.array(3), "v": text("off", "on")})
    case("constants", [plain("Constant", "", "a", value_string="é"), plain("Constant", "", "b", value_strings=["q", "", "q"]),
                       plain("StringConcat", "x a", "c"), plain("Equal", "b x", "e")], "x:t[3]", "c e", {"x": text("q", "", "é")})
    case("many-constants", plain("Gather", "table i", "y"), "i:i[n]", "y", {"i": np.array([499, 0, 250])},
         {"table": text(*[f"word {i} ü" for i in range(500)])})
    case("nothing-but-strings", plain("Concat", "x x", "y", axis=0), "x:t[n]", "y", [{"x": text("a")}, {"x": text()}])


def unique():
    for order in [0, 1]:
        case(f"unique-{order}", plain("Unique", "x", "y a b c", sorted=order), "x:t[n]", "y a b c",
             [{"x": words(30)}, {"x": words(1)}, {"x": text("b", "a", "b", "é", "Z")}])
    case("unique-then", [plain("Unique", "x", "u"), plain("StringConcat", "u u", "y")], "x:t[n,m]", "y", {"x": words(4, 5)})


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(name, nodes, inputs, outputs, consts=()):
    return helper.make_graph(nodes, name, inputs, outputs, [tensor(v, k) for k, v in dict(consts).items()])


def control():
    t, b, i = TensorProto.STRING, TensorProto.BOOL, TensorProto.INT64
    yes = graph("yes", [plain("StringConcat", "x mark", "r")], [], [value("r", t, ["n"])], {"mark": text("!")})
    no = graph("no", [plain("Identity", "x", "r")], [], [value("r", t, ["n"])])
    case("if", plain("If", "c", "y", then_branch=yes, else_branch=no), "c:b[] x:t[n]", "y:t",
         [{"c": np.array(c), "x": words(n)} for c, n in [(True, 3), (False, 2), (True, 1)]])
    shorter = graph("shorter", [plain("Slice", "x zero one", "r")], [], [value("r", t, ["k"])],
                    {"zero": np.array([0]), "one": np.array([1])})
    case("if-sizes", [plain("If", "c", "s", then_branch=shorter, else_branch=no), plain("StringConcat", "s s", "y")],
         "c:b[] x:t[n]", "y:t", [{"c": np.array(c), "x": words(3)} for c in (True, False)])
    # Strings that grow, stacked, and compared to end the loop.
    body = graph("body", [
        plain("StringConcat", "s x", "next"), plain("Identity", "s", "was"), plain("Equal", "next stop", "hit"),
        plain("Cast", "hit", "h", to=i), plain("ReduceSum", "h", "count", keepdims=0), plain("Cast", "count", "any", to=b),
        plain("Not", "any", "go_on"),
    ], [value("i", i, []), value("go", b, []), value("s", t, ["n"])],
        [value("go_on", b, []), value("next", t, ["n"]), value("was", t, ["n"])], {"stop": text("aaaa")})
    case("loop", plain("Loop", "m go x", "last all", body=body), "m:i[] go:b[] x:t[n]", "last:t all:t",
         [{"m": np.array(m), "go": np.array(True), "x": x}
          for m, x in [(5, text("b", "é")), (5, text("a", "c")), (2, text("", "q"))]])
    grow = graph("grow", [plain("Concat", "s x", "next", axis=0), plain("Identity", "go", "go_on")],
                 [value("i", i, []), value("go", b, []), value("s", t, None)],
                 [value("go_on", b, []), value("next", t, None)])
    case("loop-grows", plain("Loop", "m go x", "y", body=grow), "m:i[] go:b[] x:t[n]", "y:t",
         [{"m": np.array(m), "go": np.array(True), "x": words(n)} for m, n in [(3, 2), (0, 1)]])
    step = graph("step", [plain("StringConcat", "s e", "out"), plain("Identity", "e", "next")],
                 [value("s", t, []), value("e", t, [])], [value("next", t, []), value("out", t, [])])
    case("scan", plain("Scan", "s x", "last all", body=step, num_scan_inputs=1), "s:t[] x:t[n]", "last:t all:t",
         [{"s": np.array("", object), "x": words(n)} for n in (5, 1)])


def sequences():
    case("sequence-at", [plain("SplitToSequence", "x", "s", axis=0, keepdims=0), plain("SequenceAt", "s two", "y")],
         "x:t[4]", "y:t", {"x": words(4)}, {"two": np.array(2)})
    case("sequence-made", [plain("SequenceConstruct", "x y", "s"), plain("SequenceInsert", "s x", "t"),
                           plain("ConcatFromSequence", "t", "z", axis=0), plain("SequenceLength", "t", "n")],
         "x:t[n] y:t[m]", "z:t n:i", [{"x": words(2), "y": words(3, seed=1)}, {"x": words(1), "y": words(1)}])
    case("sequence-empty", [plain("SequenceEmpty", "", "e", dtype=TensorProto.STRING), plain("SequenceInsert", "e x", "s"),
                            plain("SequenceAt", "s zero", "y")], "x:t[n]", "y:t", {"x": words(3)}, {"zero": np.array(0)})


for group in [joins, pieces, normalized, matches, labels, classes, grams, numbers, moves, unique, control, sequences]:
    group()
print(W.count, "cases written")
