"""The names of a timm model, and of the same tensors in the feature extractor that is the encoder's body."""

from __future__ import annotations

import functools
import warnings

import timm
import torch

from codo.errors import CodoError


@functools.cache
def body_names(backbone: str) -> dict[str, str]:
    """Map the names of a timm model's tensors to the body's, in the model's order.

    timm's `features_only` renames: the children of an outermost `nn.Sequential` are flattened (`stem.0` -> `stem_0`),
    or the whole model is put below `model`. What lies behind the last stage (classifier, last norm) has no name there.

    Raises:
        CodoError: timm has no such model.

    Example:
        >>> names = body_names("convnext_atto")
        >>> names["stem.0.weight"], names["stages.0.blocks.0.mlp.fc1.bias"], names.get("head.fc.weight")
        ('stem_0.weight', 'stages_0.blocks.0.mlp.fc1.bias', None)
    """
    if not timm.is_model(backbone):
        raise CodoError(f"backbone: timm has no model {backbone!r}")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model, body = timm.create_model(backbone), timm.create_model(backbone, features_only=True)
    inside = body.state_dict().keys()
    found = {}
    for name in model.state_dict():
        candidates = (name.replace(".", "_", 1), name, f"model.{name}")
        own = next((candidate for candidate in candidates if candidate in inside), None)
        if own is not None:
            found[name] = own
    return found
