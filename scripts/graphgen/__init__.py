"""Random, valid, typed ONNX graphs whose results are numerically tame."""
