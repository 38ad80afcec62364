"""An embedder in 8 bits: exported to ONNX, its linear layers quantised, run by ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jora_tasks.errors import InputError, first_line

_OPSET = 17
_VERSION = 1  # raised when another model would be made of the same weights


def int8_encoder(model: Any, digest: str, cache_folder: Path) -> Any:
    """Token ids, int64 [N, L], to vectors, float32 [N, D], in 8 bits.

    Weights are quantised by output channel, activations as they come (dynamically); both to unsigned
    8 bits, which no CPU's instructions saturate on. The model is made once and kept.

    Args:
      model: a `SentenceTransformer`.
      digest: of its files, by which the made model is kept.
      cache_folder: where.

    Raises:
      InputError: if ONNX Runtime is not installed, or the model cannot be exported.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise InputError(
            "index.backend onnx_int8 needs ONNX Runtime; run `pip install -c constraints.txt -e '.[onnx]'` "
            "in the project's folder, or set index.backend to torch."
        ) from None
    file = cache_folder / f"{digest.removeprefix('sha256:')[:16]}-int8-{_VERSION}.onnx"
    if not file.is_file():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            exported, made = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            _export(model, exported)
            quantize_dynamic(
                exported,
                made,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QUInt8,
            )
            made.replace(file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads := os.environ.get("OMP_NUM_THREADS"):
        options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda tokens: session.run(None, {"input_ids": np.asarray(tokens, np.int64)})[0]


def _export(model: Any, file: Path) -> None:
    """The whole model, pooling included, as one graph of token ids; nothing is padded, so no mask."""
    import torch

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model({"input_ids": input_ids})["sentence_embedding"]

    example = torch.ones((2, 5), dtype=torch.int64, device="cpu")
    device = model.device
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracing exporter: it needs no other package
            torch.onnx.export(
                Vectors().eval().cpu(),
                (example,),
                str(file),
                input_names=["input_ids"],
                output_names=["vectors"],
                dynamic_axes={"input_ids": {0: "texts", 1: "tokens"}, "vectors": {0: "texts"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except Exception as error:  # each model may fail in its own way
        reason = first_line(error)
        raise InputError(
            f"index.backend onnx_int8: this embedder cannot be exported to ONNX ({reason}); set "
            "index.backend to torch."
        ) from None
    finally:
        model.to(device)
