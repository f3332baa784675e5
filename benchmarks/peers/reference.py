"""Our ViT on the paper's code, github.com/Intelligent-Computing-Research-Group/SpikeZIP-TF, from a local checkout.

Imported are its quantizers, its quantized attention and `SNNWrapper`, which converts and simulates; it needs timm and
scipy. Three things are done to it from outside. Its `reset` calls .cuda(), so its parts are called one by one. Its
wrapper leaves eps of each LayerNorm at PyTorch's default whatever the network has, which would be another network, so
eps is set back (`restore_eps=False` leaves it). What it prints is dropped. It runs float32 only: its attention casts
to that. Its loop ends before `time_steps` if nothing has fired and no input came in the step before.

Once settled, its logits need not be those of its QANN, for the same reason as SpikingJelly's in float32.
"""

import contextlib
import importlib
import io
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.conversion.reference.plain import scale_of
from spikezip_hf.conversion.reference.plain_vit import VisionTransformer

from . import Batch, Peer

FILES = ("spike_quan_layer", "spike_quan_wrapper")


def load(path: str | Path) -> tuple[ModuleType, ModuleType]:
    """The two modules of a checkout at `path`: layers, and wrapper.

    Raises:
        ImportError: they are not there, or lack a package; the message says which.
    """
    if not all((Path(path) / f"{name}.py").is_file() for name in FILES):
        raise ImportError(f"{path} is no checkout of Intelligent-Computing-Research-Group/SpikeZIP-TF, branch main.")
    sys.path.insert(0, str(path))
    try:
        layers, wrapper = (importlib.import_module(name) for name in FILES)
    except ImportError as error:
        raise ImportError(f"The paper's code lacks a package ({error}): pip install timm scipy") from error
    finally:
        sys.path.remove(str(path))
    return layers, wrapper


class ReferencePeer(Peer):
    """The wrapped network.

    Args:
        qann: ours, float32.
        path: of the checkout.
        encoding: "analog" for the image as current of the first step; "rate" for an equal part of it at each of as
            many steps as there are levels.
        restore_eps: give each LayerNorm its eps back, which the wrapper drops.
    """

    def __init__(self, qann: QuantViTForImageClassification, path: str | Path, encoding: str, restore_eps: bool):
        if qann.dtype != torch.float32:
            raise ValueError(f"The paper's code runs float32 only, not {qann.dtype}.")
        self.name, self.qann = f"SpikeZIP-TF, {encoding}", qann
        layers, self.wrapper = load(path)

        def quantizer(node) -> nn.Module:
            made = layers.MyQuan(node.levels, sym=node.signed)
            made.s.data = scale_of(node)
            return made

        def attention(width: int, num_heads: int, levels: int) -> nn.Module:
            return layers.QAttention(width, num_heads, level=levels)

        with contextlib.redirect_stdout(io.StringIO()):
            self.network, converted = (
                VisionTransformer(qann, quantizer, attention).to(qann.device).eval() for _ in range(2)
            )
            self.snn = self.wrapper.SNNWrapper(
                converted,
                cfg=None,
                Encoding_type=encoding,
                level=qann.config.quantization_levels,
                neuron_type="ST-BIF",
                model_name="vit",
                is_softmax=True,
            ).eval()
        if restore_eps:
            for module in self.snn.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = qann.config.layer_norm_eps

    def reset(self) -> None:
        """What the wrapper's own reset does, on any device."""
        self.snn.model.cls_token.data = self.snn.cls_token.clone()
        self.snn.model.pos_embed.data = self.snn.pos_embed.clone()
        self.wrapper.reset_model(self.snn)

    @torch.no_grad()
    def quantized(self, inputs: Batch) -> torch.Tensor:
        return self.network(self.qann.prepare(**inputs))

    @torch.no_grad()
    def simulate(self, inputs: Batch, time_steps: int) -> torch.Tensor:
        self.reset()
        self.snn.T = time_steps
        with contextlib.redirect_stdout(io.StringIO()):
            logits, _ = self.snn(self.qann.prepare(**inputs))
        return logits


def reference_modes(qann: QuantViTForImageClassification, path: str | Path, restore_eps: bool = True) -> list[Peer]:
    """`qann` on the paper's code at `path`: the image as current of the first step, as with us.

    Raises:
        ImportError: the code is not at `path`, or cannot be imported.
        ValueError: `qann` is not float32, or has what the code's layout cannot express.
    """
    return [ReferencePeer(qann, path, "analog", restore_eps)]
