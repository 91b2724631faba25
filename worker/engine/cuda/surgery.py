"""fp8 products put in place of a transformers model's own."""

import torch
from torch import Tensor, nn

from worker.engine.cuda.linears import make_linear


class DeviceLinear(nn.Module):
    """A linear layer of the kind chosen."""

    def __init__(self, linear: nn.Linear, quantization: str, *, use_triton: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear = make_linear(linear.weight.detach(), linear.bias, quantization, use_triton=use_triton)
        self.num_bytes = self._linear.num_bytes

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]"""
        return self._linear(x)


@torch.inference_mode()
def operate(model: nn.Module, quantization: str, *, use_triton: bool) -> int:
    """Replace the linear layers but for the head, one after the other; returns the bytes that the new ones take."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    num_bytes = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                narrow = DeviceLinear(child, quantization, use_triton=use_triton)
                num_bytes += narrow.num_bytes
                setattr(parent, name, narrow)
    return num_bytes
