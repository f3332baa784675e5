"""ONNX files of the quantized network and of one step of the spiking one, checked in onnxruntime."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import tqdm

from spikezip_hf.export.checking import Check, check_quantized, check_step
from spikezip_hf.export.programs import exportable, facts, file_in, trace
from spikezip_hf.export.streaming import StreamingStep
from spikezip_hf.models.checkpoint_files import moved_in_whole
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel

STATE, NEXT, LEVELS, SETTLED = "state.", "next_state.", "levels.", "settled"
LARGEST_FILE = 2**31 - 2**24  # bytes of weights that one ONNX file holds; more of them lie beside it


def import_runtime():
    """onnxruntime, with the packages that writing a file needs.

    Raises:
        ImportError: one is missing; says what to do.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX files need onnx, onnxscript and onnxruntime ({error.name} is missing): pip install "
            "'spikezip-hf[export]'."
        ) from error
    return onnxruntime


def export_onnx(
    model: TwinPreTrainedModel, path: str | os.PathLike, kind: str = "quantized", inputs: str = "static"
) -> dict[str, Any]:
    """Write an ONNX file, for any batch size and length of texts, and check it in onnxruntime, node by node.

    Of "quantized", inputs and output are named as in transformers: pixel_values or input_ids, attention_mask (and
    token_type_ids); logits. The level of each node is there under the name `levels.NODE`, within. Of "step" there are,
    besides, for each part of the state an input `state.NAME` and an output `next_state.NAME`, and the output
    `settled`: see `StreamingStep`. A state at rest is all zeros.

    Args:
        model: a Quant model for "quantized", a Spike model for "step"; in float32, on a CPU.
        path: of the file; or a folder, for `model.onnx` in it. Until all is written and checked, what was there stays.
        kind, inputs: as for `export_program`.

    Returns:
        What is known of the file, which stands in its own metadata, too, and what the check found.

    Raises:
        ImportError: a package is missing; says what to do.
        TypeError, ValueError: that cannot be exported of this model.
        ExportError: the file does something else than the model; names the worst node.
    """
    runtime = import_runtime()
    target = file_in(path, ".onnx")
    module = exportable(model, kind, inputs)
    told = facts(model, module)
    if not isinstance(module, StreamingStep):
        module.output_levels = True  # to be checked, and then no longer given out
    beside = sum(x.nbytes for x in module.state_dict().values()) > LARGEST_FILE
    with tqdm(total=3, desc="exporting", unit="part") as progress, moved_in_whole(target.parent) as aside:

        def finish_part(following: str) -> None:
            progress.update()
            progress.set_postfix_str(following)

        progress.set_postfix_str("making the graph")
        program = onnx_program(module, [node.name for node in model.nodes])
        program.model.metadata_props.update(
            {f"spikezip.{name}": x if isinstance(x, str) else json.dumps(x) for name, x in told.items()}
        )
        finish_part("writing")
        file = aside / target.name
        program.save(file, external_data=beside)
        finish_part("checking")
        session = Session(runtime, file)
        if isinstance(module, StreamingStep):
            found: Check = check_step(model, module, session)
        else:
            found = check_quantized(model, module, session)
            del program.model.graph.outputs[1:]
            program.save(file, external_data=beside)
            Session(runtime, file)
        finish_part("")
    return {"written": str(target), **told, "checked": vars(found)}


@torch.no_grad()
def onnx_program(module, nodes: list[str]):
    """The module as an ONNX program of torch, its tensors named."""
    output = module.signature.output
    if isinstance(module, StreamingStep):
        state = list(module.state_shapes)
        input_names = [*module.signature.inputs, *(STATE + name for name in state)]
        output_names = [output, SETTLED, *(NEXT + name for name in state)]
    else:
        input_names = list(module.signature.inputs)
        output_names = [output, *(LEVELS + name for name in nodes)]
    with warnings.catch_warnings():
        # Dimensions of several inputs are the same ones; that it uses one name for them is what is wanted.
        warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used")
        program = torch.onnx.export(
            trace(module),
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=module.dynamic_shapes(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # torch's notes on where code was found on this machine
    return program


class Session:
    """An ONNX file in onnxruntime, called like the module that it was made of."""

    def __init__(self, runtime, file: Path):
        self.session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, torch.Tensor], state: dict[str, torch.Tensor] | None = None):
        feeds = {**inputs, **{STATE + name: x for name, x in (state or {}).items()}}
        arrays = self.session.run(None, {name: x.numpy() for name, x in feeds.items()})
        tensors = [torch.from_numpy(np.asarray(array)) for array in arrays]
        prefix, single = (LEVELS, 1) if state is None else (NEXT, 2)
        named = {name.removeprefix(prefix): x for name, x in zip(self.outputs[single:], tensors[single:])}
        return (*tensors[:single], named)
