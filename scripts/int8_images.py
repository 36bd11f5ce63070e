"""Image networks quantized to 8 bits, as ONNX Runtime's tool does it.

`quantized(name, folder)` gives the float network (its batch norms folded by ONNX
Runtime's basic optimizations, as its quantizer asks for) and the quantized one: the
standard's light models with drawn weights (`light_models.py`), and a network of
MobileNetV2's layers (`build_models.mobile`). Activations in u8, filters in i8, a scale
for each filter.
"""
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import build_models
import light_models


class Samples(CalibrationDataReader):
    """Calibration from a list of feeds."""

    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def floats(name, folder):
    """The path of the float network and the name of its input."""
    if name == "mobile":
        path, data = Path(folder) / "mobile.onnx", "image"
        onnx.save(build_models.mobile(), path)
    else:
        model, data, weight = light_models.build(name)
        # The scores before the softmax stay inside: the tool quantizes a softmax as well.
        path = light_models.scaled(model, data, weight, folder)
        model = onnx.load(path)
        del model.graph.output[1:]
        # As the tool asks for, which cannot convert these models itself; of what they
        # have, dropout alone is written otherwise since. It quantizes Add, not Sum.
        model.opset_import[0].version, model.ir_version = 13, 8
        for node in model.graph.node:
            if node.op_type == "Dropout":
                node.op_type = "Identity"
                del node.attribute[:], node.output[1:]
            elif node.op_type == "Sum" and len(node.input) == 2:
                node.op_type = "Add"
        onnx.save(model, path)
    folded = Path(folder) / "folded.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return folded, data


def quantized(name, folder, form=QuantFormat.QDQ, per_channel=True, activations=QuantType.QUInt8):
    """The paths of the float and the quantized network, and the name of their input."""
    path, data = floats(name, folder)
    out = Path(folder) / "int8.onnx"
    feeds = [light_models.feed(data, batch) for batch in (1, 2)]
    quantize_static(str(path), str(out), Samples(feeds), quant_format=form, per_channel=per_channel,
                    activation_type=activations, weight_type=QuantType.QInt8)
    return path, out, data
