"""Two paths around the network's normalisation: additions of this suite, not part of the paper.

GroupNorm removes the amplitude of features. `GlobalPath` passes the MRI's coarse amplitude to every block.
`LinearPath` estimates both PETs from it in closed form, and the network learns the residual. During training each
session uses the estimate of a fit without its person; otherwise residuals of training people would be too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.batch import TRACERS, Batch, Prior

PENALTIES = (0.1, 0.3, 1.0, 3.0)  # candidates, in units of the mean eigenvalue of the coarse MRI's Gram matrix
_MIN_STD, _MIN_CELL_STD = 0.01, 1e-3  # below these standard deviations a voxel's MRI, or a cell's, counts as constant
_MIN_RESIDUAL = 1e-3  # part of an error that must remain in the fit's residual; else there is no fit without the person
_MIN_CONTENT = 0.1  # the same for the content of training prompts, in standard deviations of random prompts


def gram_spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n) of rows·rowsᵀ for rows (n, V): ridge in its dual form."""
    return torch.linalg.eigh((rows @ rows.T).double())


def _deviation(rows: Tensor, least: float) -> Tensor:
    """Standard deviation over rows (n, k) → (k,); infinite where it is not above ``least``, so that quotients are 0."""
    return torch.where((deviation := rows.std(0)) > least, deviation, torch.inf)


class CoarseMRI(nn.Module):
    """The MRI averaged over 8 × 8 × 8 cells: what the estimates of both paths read."""

    CELLS, COUNT = (8, 8, 8), 512

    def coarse(self, y0: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → means over cells (B, cells)."""
        return F.adaptive_avg_pool3d(y0, self.CELLS).flatten(1)


class GlobalPath(CoarseMRI):
    """The coarse MRI, standardised over the training people → (B, time_dim), added to the time embedding.

    It scales and shifts every block. The last layer starts near 0: a fresh network is nearly the paper's.
    """

    def __init__(self, time_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(self.COUNT))
        self.register_buffer("spread", torch.ones(self.COUNT))
        self.layers = nn.Sequential(nn.Linear(self.COUNT, 64), nn.SiLU(), nn.Linear(64, time_dim))
        nn.init.normal_(self.layers[-1].weight, std=1e-3)
        nn.init.zeros_(self.layers[-1].bias)

    def fit(self, volumes: Iterable[Tensor]) -> None:
        """Mean and standard deviation over training MRI (…, 1, X, Y, Z), volume by volume; constant cells get 0."""
        if coarse := [self.coarse(mri.to(self.mean)) for mri in volumes]:
            cells = torch.cat(coarse)
            self.mean.copy_(cells.mean(0))
            self.spread.copy_(_deviation(cells, _MIN_CELL_STD))

    def forward(self, y0: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → (B, time_dim)."""
        return self.layers(4 * (self.coarse(y0) - self.mean) / self.spread / math.sqrt(self.COUNT))


class LinearPath(CoarseMRI):
    """PET = D·C + M·R, voxel by voxel: D holds 1 and the sentence's content, M is the standardised coarse MRI.

    ``shape`` is the grid's (X, Y, Z), ``features`` the length of `PriorModule.sentence_features`.

    A linear map of the sentence features, fitted to random prompts without images, gives their content: age, sex and
    what else they state. Content and MRI are then fitted jointly (Frisch, Waugh, Lovell): the MRI by ridge regression
    in its dual form, the content by least squares over all prompts with and without age and sex. The penalty minimises
    the error on left-out people. Only voxels in which a training image is not 0 are fitted. Memory: 0.3 GB on the
    default phantom; too much for grids of 128³ voxels.
    """

    def __init__(self, shape: tuple[int, int, int], features: int) -> None:
        super().__init__()
        self.shape, n = tuple(shape), len(TRACERS)
        self.register_buffer("voxels", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("text", torch.zeros(1, features))  # mean, then the maps to the content (1 + k, features)
        empty = {"mri": (0,), "spread": (0,), "sentence": (n, 1, 0), "basis": (n, 0, self.COUNT), "writes": (n, 0, 0)}
        for name, size in empty.items():  # no voxel before a fit: the estimate is 0
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("pet", torch.zeros(1, n, *shape))  # mean over training people
        self.register_buffer("scale", torch.ones(1, n, *shape))  # standard deviation of the fit's errors
        self.left_out: Tensor | None = None  # (n, 2, V): M·R of each training session, fitted without its person

    def resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Give the buffers the shapes of a stored model; they depend on the training people."""
        for name, buffer in self.named_buffers():
            buffer.resize_(shapes.get(name, buffer.shape))

    def fit_sessions(
        self, sessions: Sequence[Batch], features: Callable[[Prior], Tensor], dropout: float, fields: Sequence[str]
    ) -> None:
        """Fit to training sessions, with prompts of all ``fields``, without one and without any, as dropout makes."""
        stacks = (torch.cat([getattr(one, name) for one in sessions]) for name in ("mri", "pet", "present"))
        mri, pet, present = (stack.to(self.text.device) for stack in stacks)
        prior = Prior.joined([one.prior for one in sessions])
        people = [who for one in sessions for who in one.people] or [str(i) for i in range(len(mri))]
        dropped = [(), *((name,) for name in fields), tuple(fields)] if dropout else [()]
        sentences = torch.stack([features(prior.without(*names)) for names in dropped])
        chances = [dropout ** len(names) * (1 - dropout) ** (len(fields) - len(names)) for names in dropped]
        self.fit(mri[:, 0], pet, present, sentences, chances, people)

    @torch.no_grad()
    def fit_text(self, sentences: Tensor, content: Tensor) -> None:
        """Map features of random prompts (n, features) to their standardised content (n, k), by least squares."""
        rows = sentences.double()
        away = rows - (mean := rows.mean(0))
        ridge = 1e-8 * rows.square().sum() / rows.shape[1]  # above rounding errors, below all that a prompt changes
        gram = away.T @ away + ridge * torch.eye(rows.shape[1]).to(rows)
        axes = torch.linalg.solve(gram, away.T @ content.to(rows))
        self.text = torch.cat([mean[None], axes.T]).float()

    @torch.no_grad()
    def fit(
        self, mri: Tensor, pet: Tensor, present: Tensor, sentences: Tensor, chances: Sequence[float],
        people: Sequence[str],
    ) -> None:  # fmt: skip
        """After `fit_text`: fit to MRI (n, X, Y, Z), PET (n, 2, X, Y, Z) where ``present`` (n, 2), and sentences.

        ``sentences`` (prompts, n, features): the full prompt of each session first, then prompts with fields left out;
        ``chances``: probability of each of these prompts in training; ``people``: the person of each session.
        """
        self.voxels = torch.cat([mri[:, None], pet], 1).ne(0).any(0).any(0)
        images, targets = mri[:, self.voxels], pet[:, :, self.voxels].double()  # (n, V), (n, 2, V)
        spread = _deviation(cells := self.coarse(mri[:, None]).double(), _MIN_CELL_STD)
        design = self.design(sentences.flatten(0, 1))
        varies = [0, *(design.std(0) > _MIN_CONTENT).nonzero()[:, 0].tolist()]  # column 0 is the constant 1
        self.text, design = self.text[varies], design[:, varies].double().unflatten(0, sentences.shape[:2])
        weight = torch.tensor(chances, dtype=torch.double, device=mri.device)[:, None, None]
        groups = [torch.tensor([i for i, p in enumerate(people) if p == q]) for q in dict.fromkeys(people)]
        fits = [self._fit_tracer(cells / spread, targets[:, i], present[:, i], design, weight, groups) for i in (0, 1)]
        sentence, basis, writes, left_out, scale = zip(*fits, strict=True)
        most = max(len(rows) for rows in basis)
        basis = [rows / spread for rows in basis]  # for cells as they are
        basis, writes = ([F.pad(r, (0, 0, 0, most - len(r))) for r in rows] for rows in (basis, writes))
        self.sentence, self.basis, self.writes = (torch.stack(v).float() for v in (sentence, basis, writes))
        self.left_out = torch.stack(left_out, 1).float()
        self.scale = self._grid(torch.stack(scale)[None].float())
        self.mri, self.spread = images.mean(0), _deviation(images, _MIN_STD)
        weights = present.double()[..., None]
        self.pet = self._grid(((targets * weights).sum(0) / weights.sum(0).clamp(min=1))[None].float())

    @staticmethod
    def _fit_tracer(
        cells: Tensor, target: Tensor, present: Tensor, design: Tensor, weight: Tensor, groups: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One tracer's map: of the sentence, basis and writes of the MRI, M·R without the person, error SD."""
        has = present.nonzero()[:, 0]
        if not len(has):  # nobody has this tracer: its estimate is 0
            zeros = torch.zeros_like(target)
            return zeros[:1].expand(design.shape[2], -1), cells[:0], zeros[:0], zeros, zeros[0]
        d, x, y = design[:, has], cells[has], target[has]
        # Normal equations over all prompts of all sessions: an image has prompts with and without fields.
        solve = torch.linalg.pinv((weight * d).flatten(0, 1).T @ d.flatten(0, 1)) @ (weight * d).sum(0).T
        of_mri, of_pet = solve @ x, solve @ y  # (1 + k, cells), (1 + k, V)
        rest, aim = cells - design[0] @ of_mri, y - d[0] @ of_pet
        parts = [rows for group in groups if len(rows := torch.isin(has, group.to(has)).nonzero()[:, 0])]
        power, axes = gram_spectrum(rest[has])
        people, least, best, without = len(parts), torch.inf, None, None
        for penalty in PENALTIES:
            level = penalty * power.mean().clamp(min=1e-6)  # 0 where no cell varies: the sentence alone is fitted
            dual = axes / (power.clamp(min=0) + level) @ axes.T  # (n, n)
            # Of a linear smoother with residuals S·y, the residuals of a fit without a person are S[p, p]⁻¹ (S·y)[p].
            smoother = level * (dual - dual @ d[0] @ solve)
            blocks = [smoother[rows][:, rows] for rows in parts]
            if min(torch.linalg.svdvals(block)[-1] for block in blocks) < _MIN_RESIDUAL:
                continue
            residuals, errors = smoother @ y, torch.empty_like(y)
            for rows, block in zip(parts, blocks, strict=True):
                errors[rows] = torch.linalg.solve(block, residuals[rows])
            if (error := float(errors.square().mean())) < least:
                least, best, without = error, dual @ aim, errors
        if best is None:
            raise ValueError(f"more than {people} training people with a PET are needed, or network.linear_path: false")
        mapped = rest @ (rest[has].T @ best)  # (n, V); replaced for the sessions of the fit
        mapped[has] = aim - without
        kernel = of_mri @ rest[has].T @ best  # the map of the part of the MRI that the sentence predicts
        return of_pet - kernel, rest[has], best, mapped + design[0] @ kernel, without.square().mean(0).sqrt()

    def design(self, sentences: Tensor) -> Tensor:
        """Features (B, features) → 1 and content (B, 1 + k)."""
        mean, axes = self.text[0], self.text[1:]
        return torch.cat([sentences.new_ones(len(sentences), 1), (sentences - mean) @ axes.T], 1)

    @torch.no_grad()
    def forward(self, mri: Tensor, sentences: Tensor, rows: Tensor | None = None) -> Tensor:
        """Both PETs (B, 2, X, Y, Z) of MRI (B, 1, X, Y, Z) and sentence features (B, features).

        ``rows`` (B,), in training: the sessions' rows in the fit; their estimate comes from a fit without the person.
        """
        with torch.autocast(mri.device.type, enabled=False):  # sums of many terms
            text = torch.einsum("bk, ckv -> bcv", self.design(sentences), self.sentence)
            if rows is not None and self.left_out is not None:
                return self._grid(text + self.left_out[rows])
            scores = torch.einsum("bk, cnk -> bcn", self.coarse(mri), self.basis)
            return self._grid(text + torch.einsum("bcn, cnv -> bcv", scores, self.writes))

    @torch.no_grad()
    def maps(self, mri: Tensor, estimate: Tensor) -> Tensor:
        """(B, 2, 2, X, Y, Z): per tracer, MRI minus mean in SDs of people, estimate minus mean in SDs of its error."""
        away = self._grid(((mri[:, 0, self.voxels] - self.mri) / self.spread)[:, None])  # (B, 1, X, Y, Z)
        return torch.stack([away.expand_as(estimate), (estimate - self.pet) / self.scale.clamp(min=_MIN_STD)], 2)

    def _grid(self, values: Tensor) -> Tensor:
        """(B, C, V) → (B, C, X, Y, Z), 0 elsewhere."""
        whole = values.new_zeros((*values.shape[:2], *self.shape))
        whole[..., self.voxels] = values
        return whole
