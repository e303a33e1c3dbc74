"""The model of the paper's released code with its faults, to measure the effect of its differences from the paper.

Facts from `Ouzaixin/ResDM` (commit f5b35d8), its ``model.py`` and ``main.py``. Modules have the names of the released
ones, so that their checkpoints load (`load_released`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.batch import TRACERS, Batch, Prior
from resdm.layers.clip import known_rows
from resdm.losses import total_loss
from resdm.method import Method
from resdm.pretraining import pretrain_text_tower
from resdm.prior import PriorConfig, PriorModule, prompt_tokens, prompts
from resdm.scheduler import ResidualScheduler
from resdm.settings import MethodConfig, further, require
from resdm.unet import Attention, norm, sinusoidal


@dataclass(frozen=True)
class ReleasedConfig(MethodConfig):
    """Settings of the released code with all its faults, T, η, κ and λ included: see `Released`."""

    kind: str = "released"
    ema: float = 0.9999
    ema_warmup: int = 2000  # plain copies before
    sampling_steps: int | None = None  # None: T = 15
    width: int = 32
    mri_shift: int = 2  # voxels, in training: of the MRI alone, after training.shift_voxels has moved all volumes
    repaired: tuple[Literal["input", "attention", "middle"], ...] = ()  # faults, to measure the effect of each
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(context="pooled"))  # dim: 8 × width

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.mri_shift >= 0, "mri_shift", self.mri_shift, "0 or more")
        require(self.sampling_steps in (None, *range(1, 16)), "sampling_steps", self.sampling_steps, "1 to T = 15")
        prior = self.prior
        pooled = prior.context == "pooled" or "attention" in self.repaired
        require(pooled, "prior.context", prior.context, "pooled; tokens only where repaired has attention")
        require(not further(prior.fields), "prior.fields", list(prior.fields), "age and sex, as the released code")
        require(prior.dim == 8 * self.width, "prior.dim", prior.dim, f"{8 * self.width}, 8 × the network's width")


_GROUPS, _HEADS, _MULTIPLIERS = 32, 8, (1, 2, 4, 8)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with a skip; the time embedding scales and shifts after the second norm."""

    def __init__(self, channels_in: int, channels_out: int, time_dim: int) -> None:
        super().__init__()
        conv_in, conv_out = (nn.Conv3d(n, channels_out, 3, padding=1) for n in (channels_in, channels_out))
        self.in_layers = nn.Sequential(norm(channels_in, _GROUPS), nn.SiLU(), conv_in)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * channels_out))
        # The third is a dropout of 0 in the released code; it keeps the numbers in the names.
        self.out_layers = nn.Sequential(norm(channels_out, _GROUPS), nn.SiLU(), nn.Identity(), conv_out)
        self.skip_connection = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, X, Y, Z), (B, time_dim) → (B, C_out, X, Y, Z)."""
        scale, shift = self.emb_layers(time)[..., None, None, None].chunk(2, dim=1)  # (B, C, 1, 1, 1) each
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class SelfAttention(nn.Module):
    """Single-head scaled dot-product attention of voxels over themselves, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels, _GROUPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → the same."""
        q, k, v = (part.mT for part in self.qkv(self.norm(x.flatten(2))).chunk(3, dim=1))  # (B, voxels, C) each
        attended = F.scaled_dot_product_attention(q, k, v).mT  # (B, C, voxels)
        return x + self.proj_out(attended).reshape(x.shape)


class Gating(nn.Module):
    """The cross-attention of the released code, which compares no voxel with any token.

    The softmax of q ⊙ k · C^−½ runs over the 32 channels of each head, and its result multiplies v channel by channel.
    There is no output projection and no residual. The result (voxels, C) is read as (C, voxels) without a transpose,
    which scatters channels over space.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, C, X, Y, Z), (B, 1, C) → (B, C, X, Y, Z)."""
        q, k, v = self.query(x.flatten(2).mT), self.key(text), self.value(text)  # (B, voxels, C), (B, 1, C) twice
        gates = (q * k / math.sqrt(q.shape[-1])).unflatten(-1, (_HEADS, -1)).softmax(-1)  # (B, voxels, heads, C/heads)
        return (gates.flatten(2) * v).reshape(x.shape)


class Stage(nn.Sequential):
    """Modules in sequence; residual blocks among them also get the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, X, Y, Z), (B, time_dim) → (B, C_out, …)."""
        for part in self:
            x = part(x, time) if isinstance(part, ResidualBlock) else part(x)
        return x


class ReleasedUNet(nn.Module):
    """f_θ(x_t, t, text) → x̂_0; unlike in Eq. 3, y_0 is not an input.

    The fourth level has 8 × ``width`` channels, as the text. ``repaired`` lists faults to repair: ``input`` (adds y_0),
    ``attention`` (ResDM's attention for `Gating`), ``middle`` (the four middle modules in sequence).
    """

    def __init__(self, width: int, repaired: tuple[str, ...] = ()) -> None:
        super().__init__()
        widths, time_dim = [width * multiplier for multiplier in _MULTIPLIERS], 4 * width
        last = len(widths) - 1
        self.width, self.repaired = width, repaired
        self.time_embed = nn.Sequential(nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.input_blocks = nn.ModuleList([Stage(nn.Conv3d(2 if "input" in repaired else 1, width, 3, padding=1))])
        skips, channels = [width], width
        for level, wide in enumerate(widths):
            attention = [SelfAttention(wide)] if level == last else []
            self.input_blocks.append(Stage(ResidualBlock(channels, wide, time_dim), *attention))
            skips.append(channels := wide)
            if level < last:
                down = OrderedDict(op=nn.Conv3d(wide, wide, 3, stride=2, padding=1))
                self.input_blocks.append(Stage(nn.Sequential(down)))
                skips.append(wide)
        around = [ResidualBlock(channels, channels, time_dim) for _ in range(2)]
        cross = Attention(channels, _HEADS, _GROUPS, channels) if "attention" in repaired else Gating(channels)
        self.middle_block = nn.ModuleList([around[0], SelfAttention(channels), cross, around[1]])
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            wide = widths[level]
            for _ in range(2):
                attention = [SelfAttention(wide)] if level == last else []
                self.output_blocks.append(Stage(ResidualBlock(channels + skips.pop(), wide, time_dim), *attention))
                channels = wide
            if level:
                up = OrderedDict(twice=nn.Upsample(scale_factor=2), conv=nn.Conv3d(wide, wide, 3, padding=1))
                self.output_blocks[-1].append(nn.Sequential(up))
        self.out = nn.Sequential(nn.Conv3d(width, 1, 3, padding=1), nn.Tanh())

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, y0: Tensor | None = None) -> Tensor:
        """x̂_0 (B, 1, X, Y, Z) in (−1, 1) of x_t (B, 1, X, Y, Z), in sizes that are multiples of 8.

        ``t`` (B,) holds step indices 0 … T−1; ``text`` is (B, tokens, 8 × width), one token unless the attention is
        repaired; ``y0`` (B, 1, X, Y, Z) is used only if the input is repaired.
        """
        time = self.time_embed(sinusoidal(t, self.width).to(x_t.dtype))  # (B, 4 width)
        x, skips = torch.cat([x_t, y0], dim=1) if "input" in self.repaired else x_t, []
        for stage in self.input_blocks:
            x = stage(x, time)
            skips.append(x)
        first, attention, cross, second = self.middle_block
        if "middle" in self.repaired:
            x = second(cross(attention(first(x, time)), text), time)
        else:  # three of four results are computed and discarded: their weights, 7.48 M of 29.2 M, get no gradient
            first(x, time), attention(x), second(x, time)
            x = cross(x, text)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), time)
        return self.out(x)


class Released(Method):
    """The released code's model: scheduler, prompts, pooled text, `ReleasedUNet` and loss.

    As released: CLIP's pooled ``encode_text``, not normalised, then a linear layer; T, η and κ; both tracers share t
    and have independent noise; 10 (MSE_Aβ + MSE_tau) + ``MSE(|x¹ − x²|, |x̂¹ − x̂²|)``; AdamW; the EMA covers only
    the U-Net; in training the MRI is shifted and the PETs are not. Departures: ``docs/baselines.md``.
    The axes of the grid are multiples of 8, else `ValueError`.
    """

    config: ReleasedConfig

    def __init__(self, config: ReleasedConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        multiple = 2 ** (len(_MULTIPLIERS) - 1)
        if any(n % multiple for n in shape):
            raise ValueError(f"the released network takes multiples of {multiple}, preprocess.grid.shape is {shape}")
        self.scheduler = ResidualScheduler()  # its defaults are the released settings
        self.prior = PriorModule(config.prior)
        self.unet = ReleasedUNet(config.width, config.repaired)

    def prepare(self, seed: int, folder: Path | None = None, train: Iterable[Batch] = ()) -> None:
        """Pretrain a text tower that has no weights."""
        pretrain_text_tower(self.prior, seed, folder=folder)

    def averages(self, name: str) -> bool:
        """The released EMA covers the U-Net; the text tower is saved without averaging."""
        return name.startswith("unet.")

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Ten times Eq. 7 with λ = 0.1, at a uniformly drawn step."""
        x0, device = batch.pet, batch.mri.device
        t = torch.randint(self.scheduler.steps, (len(batch),), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        mri = shifted(batch.mri, self.config.mri_shift, generator)
        x_t = self.scheduler.add_noise(x0, mri.expand_as(x0), noise, t)  # (B, 2, X, Y, Z)
        x0_hat = self.predict(x_t, mri, t, self.text(batch.prior, generator))
        loss, self.scalars = total_loss(x0_hat, x0, batch.present, 0.1)
        yield "model", 10 * loss

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Eq. 2: from the noisy MRI, the only image input of the released network, to both PETs by Eq. 3."""
        text = self.text(prior)
        x = self.scheduler.start(mri.expand(-1, len(TRACERS), -1, -1, -1), generator)
        for t in self.scheduler.set_timesteps(self.config.sampling_steps if steps is None else steps):
            x0_hat = self.predict(x, mri, torch.full((len(mri),), t, device=mri.device), text)
            x = self.scheduler.step(x0_hat, t, x, generator)
        return x.clamp(0, 1)

    def text(self, prior: Prior, generator: torch.Generator | None = None) -> Tensor:
        """Text (B, 2, tokens, dim) of each person and tracer, one token if pooled; a ``generator`` drops fields."""
        return self.prior(prompts(self.prior.mask_fields(prior, generator))).unflatten(0, (-1, len(TRACERS)))

    def predict(self, x_t: Tensor, mri: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """x̂_0 (B, 2, X, Y, Z) of x_t (B, 2, X, Y, Z) at steps (B,), one pass per tracer."""
        passes = [self.unet(x_t[:, i : i + 1], t, text[:, i], mri) for i in range(len(TRACERS))]
        return torch.cat(passes, dim=1).float()


def shifted(mri: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """MRI (B, 1, X, Y, Z), each moved by up to ``most`` voxels per axis.

    A margin of ``most`` voxels at the low end of each axis, and one more at the high end, is always 0.
    """
    if most == 0:
        return mri
    moves = torch.randint(-most, most + 1, (len(mri), 3), generator=generator, device=generator.device).tolist()
    result = torch.zeros_like(mri)
    inside = [slice(most, n - most - 1) for n in mri.shape[2:]]
    for i, move in enumerate(moves):
        source = [slice(part.start + by, part.stop + by) for part, by in zip(inside, move, strict=True)]
        result[i, 0][*inside] = mri[i, 0][*source]
    return result


def load_released(
    unet: str | Path,
    text: str | Path,
    config: ReleasedConfig | None = None,
    shape: tuple[int, int, int] = (128, 128, 128),
) -> Released:
    """A method with the weights of the released code; `resdm.checkpoint.save_model` makes a model folder of it.

    Parameters
    ----------
    unet, text : path
        ``Unet.pth.tar`` (the averaged U-Net) and ``Text_encoder.pth.tar`` (CLIP, whose text tower is used, and the
        linear layer). `FileNotFoundError` or `ValueError` names a file, and weights, that do not fit.
    shape : tuple of int
        Grid of the training volumes.
    """
    config = config or ReleasedConfig()
    method = Released(replace(config, prior=replace(config.prior, weights="none")), shape)  # no download to overwrite
    method.config = config
    _take(method.unet, _read(unet), unet)
    state = {
        key.replace("model.", "tower.", 1).replace("linear.", "project.", 1): value
        for key, value in _read(text).items()
        if not key.startswith(("model.visual.", "model.logit_scale"))  # CLIP's image tower is not used
    }
    if (embedding := "tower.token_embedding.weight") in state:
        state[embedding] = known_rows(state[embedding], prompt_tokens())
    _take(method.prior, state, text)
    return method.eval()


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint of the released code (.pth.tar)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch documents no error type for a broken archive
        raise ValueError(
            f"{path}: not a checkpoint of the released code, which has 'state_dict' and 'optimizer' "
            f"({type(error).__name__}: {error})"
        ) from error


def _take(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copy a state dictionary whose names and shapes must all be the module's."""
    weights = dict(module.named_parameters())  # each under one name; frozen blocks of the prior module have two
    wrong = sorted(weights.keys() ^ state.keys())
    wrong = wrong or [name for name in weights if weights[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} weights are missing, unknown or of another shape than the released network's, as "
            f"{wrong[0]!r}; give the U-Net's file first, the text encoder's second, and the widths it was trained with"
        )
    module.load_state_dict(state, strict=False)
