"""ResDM in one sampling step as one ONNX file: preprocessed T1 and prompt in, both PETs in SUVR out.

It computes what `resdm_suite.apps.prediction.Model.synthesise` computes with ``steps=1`` and the model's seed, whose
noise is stored in the file. Three parts of the method are expressed by what ONNX has: the text tower takes rows of its
embedding instead of a sentence, the linear path has an index of its voxels instead of a mask, and means over cells are
products with matrices.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.batch import TRACERS
from resdm.checkpoint import CheckpointError
from resdm.io import atomic
from resdm.layers import clip
from resdm.layers.paths import CoarseMRI, LinearPath
from resdm.prior import PriorModule, prompt
from resdm.residual_diffusion import ResidualDiffusion
from resdm.settings import SEXES, ConfigError
from resdm_suite.anatomy import mni_map
from resdm_suite.apps.prediction import Model


class OneStep(nn.Module):
    """T1 (Z, Y, X) in [0, 1] and embedding rows (2, 77) of the prompts of `TRACERS` → amyloid, tau, (Z, Y, X) each.

    Volumes are transposed: so the bytes of a NIfTI file are those of the tensor. PETs are in SUVR where the model has
    a scale, otherwise in [0, 1], and 0 outside the brain if real volumes are.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        method, preprocess = model.method, model.card.config.preprocess
        if not isinstance(method, ResidualDiffusion):
            raise CheckpointError(
                f"{model.card.folder}: {model.card.name} is no residual diffusion ({model.card.settings.kind}); "
                "name the model folder of ResDM"
            )
        self.method = copy.deepcopy(method).eval()
        if method.linear is not None:
            self.method.linear = _GridPath(method.linear)
        for path in (part for part in self.method.modules() if isinstance(part, CoarseMRI)):
            path.coarse = _coarse(model.grid.shape, path.CELLS)
        generator = torch.Generator(model.device).manual_seed(model.card.config.seed)
        empty = torch.zeros(1, len(TRACERS), *model.grid.shape, device=model.device)
        self.register_buffer("noise", method.scheduler.start(empty, generator))
        (self.step,) = self.method.scheduler.set_timesteps(1)
        inside = mni_map("brain", model.grid).copy() if preprocess.mask else np.ones(model.grid.shape, bool)
        self.register_buffer("inside", torch.from_numpy(inside))
        self.ranges = [preprocess.pet_range[tracer] for tracer in TRACERS]

    def forward(self, t1: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        mri = t1.permute(2, 1, 0)[None, None]  # (1, 1, X, Y, Z)
        context, features = self.read(rows)
        estimate = None if self.method.linear is None else self.method.linear(mri, features)
        step = torch.full((1,), self.step, device=mri.device)
        pet = self.method.predict(mri + self.noise, mri, step, context, estimate)[0].clamp(0, 1)  # (2, X, Y, Z)
        suvr = (low + (high - low) * one for (low, high), one in zip(self.ranges, pet, strict=True))
        amyloid, tau = (torch.where(self.inside, one, 0).permute(2, 1, 0) for one in suvr)
        return amyloid, tau

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`PriorModule.forward` and, of the first prompt, `PriorModule.sentence_features` of embedding rows (2, 77)."""
        prior, tower = self.method.prior, self.method.prior.tower
        ends = rows.argmax(-1)  # of the text: the largest row, as the largest token
        frozen = tower.token_embedding(rows) + tower.positional_embedding  # (2, 77, width)
        for block in prior.frozen:
            frozen = block(frozen, attn_mask=tower.attn_mask)
        return prior.context(frozen, ends), frozen[:1, ends[0]]


class _GridPath(nn.Module):
    """A linear path that works on the list of its V voxels, between gathers from and to the grid.

    Its coarse MRI comes from the grid.
    """

    def __init__(self, path: LinearPath) -> None:
        super().__init__()
        self.register_buffer("scale", path.scale)
        inside = path.voxels.flatten()
        self.register_buffer("index", inside.nonzero()[:, 0])  # voxel → place on the grid
        self.register_buffer("back", torch.where(inside, inside.cumsum(0) - 1, len(self.index)))  # V where none
        self.grid, self.path = tuple(path.voxels.shape), copy.deepcopy(path)
        self.path.shape, self.path.pet, self.path.scale = (len(self.index),), self.take(path.pet), self.take(path.scale)
        del self.path.voxels
        self.path.voxels = slice(None)  # of the list, all

    def take(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, C, V)."""
        return volumes.flatten(2)[..., self.index]

    def put(self, values: Tensor) -> Tensor:
        """(…, V) → (…, X, Y, Z), 0 elsewhere."""
        return F.pad(values, (0, 1))[..., self.back].unflatten(-1, self.grid)

    def forward(self, mri: Tensor, sentences: Tensor) -> Tensor:
        """As `LinearPath.forward`."""
        return self.put(self.path(mri, sentences))

    def maps(self, mri: Tensor, estimate: Tensor) -> Tensor:
        """As `LinearPath.maps`."""
        return self.put(self.path.maps(self.take(mri), self.take(estimate)))


def _coarse(shape: tuple[int, ...], cells: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """`CoarseMRI.coarse` as products with matrices, since ONNX has no adaptive pooling."""
    means = [F.adaptive_avg_pool1d(torch.eye(n)[None], m)[0] for n, m in zip(shape, cells, strict=True)]  # (n, m) each
    return lambda y0: torch.einsum("bcxyz, xi, yj, zk -> bcijk", y0, *means).flatten(1)


def export_onnx(model: Model, path: str | Path) -> Path:
    """Write a model in one step, `OneStep`, as ONNX: inputs ``t1`` and ``rows``, outputs ``amyloid`` and ``tau``.

    Raises
    ------
    CheckpointError
        The model is no residual diffusion.
    ConfigError
        The exporter's packages are not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ConfigError(f"{' and '.join(missing)} not installed, which the page needs: pip install 'resdm[page]'")
    module, shape = OneStep(model), model.grid.shape[::-1]
    example = torch.zeros(shape, device=model.device), prompt_rows(model.method.prior, None, None)
    options = {"input_names": ["t1", "rows"], "output_names": [*TRACERS], "dynamo": True, "verbose": False}
    with atomic(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module(*example)  # the layers keep constants of their first call, and those of a trace hold no values
        torch.onnx.export(module, example, temporary, external_data=False, **options)
    return Path(path)


def prompt_rows(prior: PriorModule, age: float | None, sex: str | None) -> Tensor:
    """Rows (2, 77), int32, of the tower's embedding for the prompts of `TRACERS`."""
    return torch.stack([_rows(prior, prompt(tracer, age, sex)) for tracer in TRACERS])


def prompt_parts(prior: PriorModule) -> dict[str, Any]:
    """Rows by which `prompt_rows` can be spelt without a tokeniser; plain values.

    Returns
    -------
    dict
        ``prompts``, one entry per tracer: sex (empty: none) → rows of the prompt without age (``plain``), and of the
        prompt with age those ``before`` and ``after`` the number. ``spelling``: digit or point → row. ``pad``: the row
        behind the prompt, up to 77.
    """
    sign = "0123456789."
    spelling = dict(zip(sign, _rows(prior, sign).tolist()[1:], strict=False))  # after the start of the text
    pad, age = int(prior.vocabulary[0]), "55.5"  # a number whose first sign is nowhere else in the prompt

    def forms(tracer: str, sex: str | None) -> dict[str, list[int]]:
        plain, full = (_rows(prior, prompt(tracer, value, sex)).tolist() for value in (None, float(age)))
        first = full.index(spelling[age[0]])
        ends = [full[:first], full[first + len(age) :]]
        return dict(zip(("plain", "before", "after"), [_stripped(rows, pad) for rows in (plain, *ends)], strict=True))

    prompts = [{sex or "": forms(tracer, sex) for sex in (None, *SEXES)} for tracer in TRACERS]
    return {"prompts": prompts, "spelling": spelling, "pad": pad}


def _rows(prior: PriorModule, text: str) -> Tensor:
    return prior.vocabulary[clip.tokens(text)].int()


def _stripped(rows: list[int], pad: int) -> list[int]:
    """Rows without the padding at their end."""
    while rows and rows[-1] == pad:
        rows = rows[:-1]
    return rows
