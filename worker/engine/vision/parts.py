"""Which modules of a model read pixels."""

from torch import nn

_PARTS = ("vision_tower", "visual", "vision_model", "connector", "multi_modal_projector")


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The tower, and what joins it to the language model. None in a model of text."""
    inner = getattr(model, "model", None)
    return [part for name in _PARTS if isinstance(part := getattr(inner, name, None), nn.Module)]


def modules_of(model: nn.Module) -> set[nn.Module]:
    """All modules within these."""
    return {module for part in parts_of(model) for module in part.modules()}


def let_alone(model: nn.Module) -> None:
    """Have the tower use the library's own attention, whatever the rest of the model was set to."""
    for part in parts_of(model):
        setter = getattr(part, "set_attn_implementation", None)
        if setter is not None:
            setter("sdpa")
