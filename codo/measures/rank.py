"""Effective rank: how many dimensions embeddings use."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(rows: Tensor) -> float:
    """Compute the exponential of the entropy of the centred rows' singular values.

    Args:
        rows: `(B, d)`; normalise them before where only directions count.

    Returns:
        1 to min(B - 1, d).

    Source:
        Roy and Vetterli (2007); RankMe (arXiv 2210.02885); here of the centred embeddings.

    Example:
        >>> round(effective_rank(torch.cat([torch.eye(3), -torch.eye(3)])), 6)
        3.0
    """
    rows = rows.cpu()  # not all devices have doubles (MPS)
    centred = (rows - rows.mean(0)).double()  # the root of an eigenvalue keeps half of its digits
    # Singular values by the smaller Gram matrix: a tenth of the time of an SVD.
    gram = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
