"""Two paths around the network's normalisation: additions of this suite, no part of the paper.

GroupNorm takes the amplitude out of a network's features at every block, and gradient steps on a few hundred people
find slowly what least squares finds at once. `GlobalPath` tells every block how the MRI as a whole differs from the
training people's. `LinearPath` gives a linear estimate of both PETs in closed form, and the network learns what that
leaves. While the network trains, each session has the estimate of a fit without its own person; else the residuals of
training people would be smaller than those of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.batch import TRACERS
from resdm.layers.ridge import gram_spectrum

PENALTIES = (0.03, 0.1, 0.3, 1.0)
"""Ridge penalties that are tried, in units of the mean eigenvalue of the MRI's Gram matrix."""

TEXT_COMPONENTS = 4
"""Principal components of the sentences' features that enter the map."""

_LEAST = 0.01  # standard deviation of intensities below which a voxel's MRI counts as constant


class GlobalPath(nn.Module):
    """The MRI's coarse amplitude → (B, time_dim), added to the time embedding: an addition to the paper.

    How atrophied a brain is as a whole raises or lowers uptake everywhere. GroupNorm takes such amplitude out of the
    features at every block, and a bottleneck of few voxels must carry it back to all others. So the MRI, averaged over
    8 × 8 × 8 cells and standardised over the training people, scales and shifts every block, as the time step does.
    The last layer starts near 0: a fresh network is nearly the paper's.
    """

    CELLS = (8, 8, 8)

    def __init__(self, time_dim: int, hidden: int = 64) -> None:
        super().__init__()
        cells = math.prod(self.CELLS)
        self.register_buffer("mean", torch.zeros(cells))
        self.register_buffer("spread", torch.ones(cells))
        self.layers = nn.Sequential(nn.Linear(cells, hidden), nn.SiLU(), nn.Linear(hidden, time_dim))
        nn.init.normal_(self.layers[-1].weight, std=1e-3)
        nn.init.zeros_(self.layers[-1].bias)

    def coarse(self, y0: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → means over cells (B, cells)."""
        return F.adaptive_avg_pool3d(y0, self.CELLS).flatten(1)

    def fit(self, volumes: Iterable[Tensor]) -> None:
        """Mean and standard deviation over training people's MRI (…, 1, X, Y, Z); constant cells are left out.

        One volume at a time is enough: of each, its cells alone are kept.
        """
        kept = [self.coarse(mri.to(self.mean)) for mri in volumes]
        if not kept:
            return
        cells = torch.cat(kept)
        self.mean.copy_(cells.mean(0))
        self.spread.copy_(torch.where((spread := cells.std(0)) > 1e-3, spread, torch.inf))

    def forward(self, y0: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → (B, time_dim)."""
        return self.layers(4 * (self.coarse(y0) - self.mean) / self.spread / math.sqrt(len(self.mean)))


class LinearPath(nn.Module):
    """PET = D·C + M·R, voxel by voxel: D holds 1 and features of the sentence, M is the MRI.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the grid (X, Y, Z).
    features : int
        Length of a sentence's feature vector (`resdm.prior.PriorModule.sentences`).

    Notes
    -----
    Sentence and MRI are fitted jointly (Frisch, Waugh, Lovell): the MRI by ridge regression in its dual form, the
    sentence's first principal components by least squares over what the person's prompt may leave out. The penalty is
    the one of the least error on people left out. Fitted are the voxels in which a training image is not 0. Memory:
    some six sets of the training people's images, 60 MB on the default phantom; grids of 128³ voxels do without.
    """

    def __init__(self, shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("voxels", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("text", torch.zeros(1 + TEXT_COMPONENTS, features))  # mean, then components by their SD
        tracers = len(TRACERS)  # before a fit there is no voxel, and the estimate is 0
        empty = {"mri": (0,), "spread": (0,), "sentence": (tracers, 1 + TEXT_COMPONENTS, 0)}
        empty |= {"reads": (tracers, 0, 0), "writes": (tracers, 0, 0)}
        for name, size in empty.items():
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("pet", torch.zeros(1, tracers, *shape))  # means over training people
        self.register_buffer("scale", torch.ones(1, tracers, *shape))  # of the errors that the fit leaves
        self.left_out: Tensor | None = None  # (n, 2, V): M·R of each training session, fitted without its person

    def resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Buffers take the shapes of a stored model: they depend on the people it was fitted on."""
        for name, buffer in self.named_buffers():
            buffer.resize_(shapes.get(name, buffer.shape))

    @torch.no_grad()
    def fit(
        self,
        mri: Tensor,
        pet: Tensor,
        present: Tensor,
        sentences: Tensor,
        chances: Sequence[float],
        people: Sequence[str],
    ) -> None:
        """Find the map.

        Parameters
        ----------
        mri : Tensor (n, X, Y, Z)
        pet : Tensor (n, 2, X, Y, Z)
        present : Tensor (n, 2), bool
        sentences : Tensor (prompts, n, features)
            Of each session's prompt, said in full first, then with parts left out.
        chances : sequence of float
            Of each of these prompts in training.
        people : sequence of str
            Whose session it is.
        """
        self.voxels = torch.cat([mri[:, None], pet], 1).ne(0).any(0).any(0)
        images, targets = mri[:, self.voxels].double(), pet[:, :, self.voxels].double()  # (n, V), (n, 2, V)
        self._fit_text(sentences)
        design = self.design(sentences.flatten(0, 1)).double().unflatten(0, sentences.shape[:2])  # (prompts, n, 1 + k)
        weight = torch.tensor(chances, dtype=torch.double, device=mri.device)[:, None, None]
        groups = [torch.tensor([i for i, p in enumerate(people) if p == q]) for q in dict.fromkeys(people)]
        found: dict[str, list[Tensor]] = {name: [] for name in ("sentence", "reads", "writes", "left_out", "scale")}
        for channel in range(len(TRACERS)):
            has = present[:, channel].nonzero()[:, 0]
            d, x, y = design[:, has], images[has], targets[has, channel]
            # An image whose parts are said or not: normal equations over all prompts of all sessions.
            solve = torch.linalg.pinv((weight * d).flatten(0, 1).T @ d.flatten(0, 1)) @ (weight * d).sum(0).T
            of_mri, of_pet = solve @ x, solve @ y  # (1 + k, V) each
            rest, aim = images - design[0] @ of_mri, y - d[0] @ of_pet
            power, axes = gram_spectrum(rest[has])
            best = (torch.inf, None, None)
            for penalty in PENALTIES:
                level = penalty * power.mean()
                dual = axes / (power.clamp(min=0) + level) @ axes.T  # (n, n)
                # Of a linear smoother with residuals S·y, those without a person are S[p, p]⁻¹ (S·y)[p].
                smoother = level * (dual - dual @ d[0] @ solve)
                left, errors = smoother @ y, torch.empty_like(y)
                for group in groups:
                    rows = torch.isin(has, group.to(has)).nonzero()[:, 0]
                    if len(rows):
                        errors[rows] = torch.linalg.solve(smoother[rows][:, rows], left[rows])
                if (error := float(errors.square().mean())) < best[0]:
                    best = (error, dual @ aim, errors)
            _, dual, errors = best
            own = rest @ (rest[has].T @ dual)  # (n, V); replaced where the session was fitted on
            own[has] = aim - errors
            kernel = of_mri @ rest[has].T @ dual  # what the map makes of the MRI that the sentence foretells
            found["sentence"].append(of_pet - kernel)
            found["reads"].append(rest[has])
            found["writes"].append(dual)
            found["left_out"].append(own + design[0] @ kernel)
            found["scale"].append(errors.square().mean(0).sqrt())
        most = max(len(rows) for rows in found["reads"])
        pad = [(0, 0, 0, most - len(rows)) for rows in found["reads"]]
        for name in ("reads", "writes"):  # one row a session that has the tracer
            found[name] = [F.pad(rows, p) for rows, p in zip(found[name], pad, strict=True)]
        for name in ("sentence", "reads", "writes"):
            setattr(self, name, torch.stack(found[name]).float())
        self.left_out = torch.stack(found["left_out"], 1).float()
        self.scale = self._grid(torch.stack(found["scale"])[None].float())
        self.mri, spread = images.mean(0).float(), images.std(0).float()
        self.spread = torch.where(spread > _LEAST, spread, torch.inf)
        weights = present.double()[..., None]
        self.pet = self._grid(((targets * weights).sum(0) / weights.sum(0).clamp(min=1))[None].float())

    def _fit_text(self, sentences: Tensor) -> None:
        """Components of what varies between prompts, each of unit variance; of a single prompt there is none."""
        rows = sentences.flatten(0, 1).double()
        mean = rows.mean(0)
        _, values, vectors = torch.linalg.svd(rows - mean, full_matrices=False)
        kept = values[:TEXT_COMPONENTS] > 1e-6 * rows.norm()
        axes = vectors[:TEXT_COMPONENTS][kept] * (len(rows) ** 0.5 / values[:TEXT_COMPONENTS][kept])[:, None]
        self.text.zero_()
        self.text[0], self.text[1 : 1 + len(axes)] = mean.float(), axes.float()

    def design(self, sentences: Tensor) -> Tensor:
        """Features (B, features) → 1 and components (B, 1 + k)."""
        mean, axes = self.text[0], self.text[1:]
        return torch.cat([sentences.new_ones(len(sentences), 1), (sentences - mean) @ axes.T], 1)

    @torch.no_grad()
    def forward(self, mri: Tensor, sentences: Tensor, sessions: Tensor | None = None) -> Tensor:
        """Both PETs of a few people.

        Parameters
        ----------
        mri : Tensor (B, 1, X, Y, Z)
        sentences : Tensor (B, features)
        sessions : Tensor (B,), int, optional
            Rows of the fit, while the network trains: of these, the estimate is without the person.

        Returns
        -------
        Tensor (B, 2, X, Y, Z)
        """
        with torch.autocast(mri.device.type, enabled=False):  # sums over all voxels
            said = torch.einsum("bk, ckv -> bcv", self.design(sentences), self.sentence)
            if sessions is not None and self.left_out is not None:
                return self._grid(said + self.left_out[sessions])
            scores = torch.einsum("bv, cnv -> bcn", mri[:, 0, self.voxels], self.reads)
            return self._grid(said + torch.einsum("bcn, cnv -> bcv", scores, self.writes))

    @torch.no_grad()
    def maps(self, mri: Tensor, estimate: Tensor) -> Tensor:
        """What the network sees beside x_t and y_0, (B, 2, 2, X, Y, Z): by tracer, MRI and estimate against the means.

        Both in standard deviations: the MRI's over training people, and the estimate's own error.
        """
        away = self._grid(((mri[:, 0, self.voxels] - self.mri) / self.spread)[:, None])  # (B, 1, X, Y, Z)
        moved = (estimate - self.pet) / self.scale.clamp(min=_LEAST)
        return torch.stack([away.expand_as(moved), moved], 2)

    def _grid(self, values: Tensor) -> Tensor:
        """(B, C, V) → (B, C, X, Y, Z), 0 elsewhere."""
        whole = values.new_zeros((*values.shape[:2], *self.shape))
        whole[..., self.voxels] = values
        return whole
