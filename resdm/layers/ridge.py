"""Ridge regression in its dual form, for far more voxels than sessions: no voxels × voxels matrix is made."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n) of rows·rowsᵀ for rows (n, V), in double precision."""
    return torch.linalg.eigh((rows @ rows.T).double())
