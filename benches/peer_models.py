"""The models that Kiln is timed on, each with the shapes and its bound on results."""
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import build_sentence  # noqa: E402
import e2e_models  # noqa: E402
import int8_models  # noqa: E402
import light_models  # noqa: E402
import models  # noqa: E402

# ‖ours − theirs‖ / ‖theirs‖ at most. Of quantized models, two runtimes land on
# different sides of rounding borders: scripts/int8_models.py has the exact comparison.
F32, INT8 = 1e-4, 1e-1


@dataclass
class Model:
    """A model: `path` writes it into a folder if it is not a file yet; `shapes` are
    labels with what makes the inputs. Where its results cannot be compared, `compared`
    writes one like it whose can."""

    name: str
    path: Callable[[Path], Path]
    shapes: list
    bound: float = F32
    compared: Callable[[Path, Path], Path] | None = None


def text(batch, length):
    return f"{batch} x {length}", lambda: e2e_models.sentences(batch, length)


def image(batch, height, width):
    return f"{batch} x 3 x {height} x {width}", lambda: e2e_models.image(batch, height, width)


def quantized(folder):
    logging.disable(logging.WARNING)  # the tool's advice on what to run before it
    return int8_models.quantized(int8_models.minilm, str(folder))[0]


def sentence(folder):
    path = folder / "all-minilm-l6.onnx"
    build_sentence.build(path)
    return path


def network(name):
    """One of scripts/light_models.py's networks with drawn weights."""
    def path(folder):
        model, data, weight = light_models.build(name)
        return light_models.scaled(model, data, weight, folder)

    def feed(batch):
        r = np.random.default_rng(batch)
        data = light_models.build(name)[1]
        return {data: r.standard_normal((batch, 3, 224, 224)).astype(np.float32)}

    return Model(name, path, [(f"{b} x 3 x 224 x 224", lambda b=b: feed(b)) for b in (1, 8)])


def installed(name):
    return lambda folder: models.path(name)


MODELS = [
    Model("minilm-l3", installed("minilm"), [text(1, 1), text(1, 16), text(1, 128), text(8, 128)]),
    Model("minilm-l3-qdq", quantized, [text(1, 128)], INT8),
    Model("minilm-int8", installed("minilm-int8"), [text(1, 128)], INT8),
    Model("all-minilm-l6", sentence, [text(32, 64)]),
    # Compared before its last sigmoid: on noise that is nearly 0, where ONNX Runtime's
    # own is off by several per cent.
    Model("ocr-detect", installed("ocr-detect"), [image(1, 640, 640)], compared=e2e_models.without_last_sigmoid),
    Model("ocr-recognise", installed("ocr-recognise"), [image(1, 48, 320)]),
    Model("ocr-classify", installed("ocr-classify"), [image(1, 48, 192)]),
    *[network(n) for n in ("resnet50", "squeezenet", "densenet121", "shufflenet", "inception_v1", "inception_v2")],
]
