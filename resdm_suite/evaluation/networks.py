"""The two evaluator networks: DSNet for status and sex, a 3D CNN for brain age.

Both are natively 3D and made for volumes of about 128³ voxels, which end as a map of 3³ (DSNet) or 4³. On smaller grids
a pooling layer that would leave fewer than `MIN_EDGE` voxels per axis is omitted. At 128³ all layers are used.

Both are adapted: trained by AdamW (`resdm_suite.evaluation.fitting`) and without rotations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]

MIN_EDGE = 3
"""The smallest map, in voxels per axis, after pooling."""


def spatial_cosine(x: Tensor) -> Tensor:
    """The spatial-cosine module of Pan et al. 2021, (B, C, X, Y, Z) → (B, 2·C·X·Y·Z), each row of unit length.

    The channels are joined by their squares less 1; each voxel's vector is scaled to unit length, then the whole. The
    linear layer behind it depends on directions, not on the strength of the image.
    """
    x = F.normalize(torch.cat([x, x**2 - 1], dim=1), dim=1)  # (B, 2C, X, Y, Z)
    return F.normalize(x.flatten(1), dim=1)


def _pool(layers: list[nn.Module], shape: Shape, layer: nn.Module, kernel: int, padding: int = 0) -> Shape:
    """Append a pooling layer of stride 2, unless it leaves less than `MIN_EDGE`; the map's shape behind it."""
    smaller = tuple((n + 2 * padding - kernel) // 2 + 1 for n in shape)
    if min(smaller) < MIN_EDGE:
        return shape
    layers.append(layer)
    return smaller


class DSNet(nn.Module):
    """The disease-image-specific network of Pan et al. 2021 (IEEE TPAMI 44:6839), a classifier of two classes.

    ``width`` is the first convolution's channels (16 in the original); volumes of ``shape`` are average-pooled by
    ``pool`` first, for small budgets (1 in the original).

    Notes
    -----
    Five 3³ convolutions of 1, 2, 4, 4, 4 × ``width`` channels with affine instance norm and ReLU; max-pooling (3,
    stride 2) after the first four, average-pooling after the fifth; `spatial_cosine`; one linear layer to two logits.

    Adapted: features of unit length give logits near 0, which slow training. They are multiplied by a learned scale
    that starts at 10.
    """

    def __init__(self, shape: Shape, width: int = 16, pool: int = 1) -> None:
        super().__init__()
        shape = tuple(n // pool for n in shape)
        layers: list[nn.Module] = [nn.AvgPool3d(pool)] if pool > 1 else []
        channels = 1
        for level, factor in enumerate((1, 2, 4, 4, 4)):
            out = factor * width
            layers += [nn.Conv3d(channels, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True), nn.ReLU(True)]
            channels, last = out, level == 4
            shape = _pool(layers, shape, nn.AvgPool3d(3, 2) if last else nn.MaxPool3d(3, 2, 1), 3, 0 if last else 1)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels * shape[0] * shape[1] * shape[2], 2)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, 1, X, Y, Z), intensities in [0, 1] → logits (B, 2)."""
        return self.log_scale.exp() * self.head(spatial_cosine(self.features(volumes)))

    def loss(self, volumes: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy without class weights, as the original; ``labels`` (B,) are 0 or 1."""
        return F.cross_entropy(self(volumes), labels.long())

    def predict(self, volumes: Tensor) -> Tensor:
        """Probability of class 1, (B,)."""
        return self(volumes).softmax(1)[:, 1]


class BrainAge(nn.Module):
    """The brain-age network of Cole et al. 2017 (NeuroImage 163:115).

    ``width`` is the first block's channels (8 in the original), doubled by each of the four others; ``pool`` as in
    `DSNet`; ``mean`` and ``std`` are those of the training ages in years, and are stored with the weights.

    Notes
    -----
    Five blocks of 3³ convolution, ReLU, 3³ convolution, batch norm, ReLU, max-pooling by 2; one linear layer; L1 loss.

    Adapted: the network predicts standardised ages, with a last bias of 0, so it starts at the mean age.
    """

    def __init__(self, shape: Shape, width: int = 8, pool: int = 1, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        shape = tuple(n // pool for n in shape)
        layers: list[nn.Module] = [nn.AvgPool3d(pool)] if pool > 1 else []
        channels = 1
        for level in range(5):
            out = width * 2**level
            layers += [nn.Conv3d(channels, out, 3, padding=1), nn.ReLU(True)]
            layers += [nn.Conv3d(out, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU(True)]
            channels = out
            shape = _pool(layers, shape, nn.MaxPool3d(2), 2)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels * shape[0] * shape[1] * shape[2], 1)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("age", torch.tensor([mean, std]))

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, 1, X, Y, Z), intensities in [0, 1] → standardised age (B,)."""
        return self.head(self.features(volumes).flatten(1))[:, 0]

    def loss(self, volumes: Tensor, ages: Tensor) -> Tensor:
        """Mean absolute error of the standardised age; ``ages`` (B,) in years."""
        return F.l1_loss(self(volumes), (ages - self.age[0]) / self.age[1])

    def predict(self, volumes: Tensor) -> Tensor:
        """Age in years, (B,)."""
        return self.age[0] + self.age[1] * self(volumes)
