"""fastai's XResNet34, trained from scratch on cells in memory with fastai's Learner and callbacks.

On unseen patients, from 3,770 real cells, in six to eleven CPU minutes: accuracy 0.963, AUC 0.991 (five parts of 120
patients; ``python -m benchmarks.training CELLS --folder WORK``, docs/training.md).
The model file and torch agree to 4e-7. No figure is from a GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tasks.models import Deadline, FitResult, Images, Recipe, TrainingData
from tasks.models.checkpoint import Checkpoints, FitProgress
from tasks.models.fastai.batches import Batches, Shuffled, chunks
from tasks.models.fastai.callbacks import callbacks, fit_from_checkpoint, printing_to_log, state_of, weights_of
from tasks.models.fastai.ranks import Ranks
from tasks.models.memory import releasing
from tasks.models.preparation import (
    BLACK,
    CONTRAST,
    INPUT,
    MIRRORED,
    OUTPUT,
    check_data,
    draw_batch,
    finish_onnx,
    outcome,
    refuse_no_epoch,
    schedule_of,
)
from tasks.models.selection import Selection
from validation.errors import TrainingFailed
from validation.records import EpochRecord
from validation.statistics.calibration import temperature_of

RECIPE_VERSION = 6
SHAPE = ("architecture",)
# torch needs one process per device.
PROCESS_PER_DEVICE = True
OPSET = 20


class DefaultRecipe(Recipe):
    """Hyperparameters of the fastai CNN, each with the reason for its number."""

    # The longest schedule; an epoch takes about 50 s on two quiet cores, of smaller cells 34 s.
    epochs: int = Field(default=8, gt=0)
    warm_epochs: int = Field(default=4, gt=0)
    # A small set takes few steps an epoch: it gets more epochs, eighteen for 1,100 cells.
    min_steps: int = Field(default=300, ge=0)
    # 72 steps an epoch: large enough for batch normalisation, small enough to converge in a few epochs.
    batch_size: int = Field(default=64, ge=2)
    # The peak of the one cycle. The only value tried.
    learning_rate: float = Field(default=3e-3, gt=0)
    # Twice fastai's default, for 21 million weights on 4,641 cells. The only value tried.
    weight_decay: float = Field(default=0.02, ge=0)
    # The first epochs see smaller cells, at two thirds of the cost, while the network learns coarse features.
    small_share: float = Field(default=0.4, ge=0, le=1)
    small_size: float = Field(default=0.75, gt=0, le=1)
    # With eight epochs the rate never stays at its peak: one cycle, as fastai has it (Smith 2018, arXiv:1803.09820).
    warmup: float = Field(default=2.0, ge=0)
    cooldown: int = Field(default=6, gt=0)
    # Ends schedules of more than eight epochs early.
    patience: int = Field(default=2, gt=0)
    # Twice what it takes on two quiet cores. A fit cut at the peak rate is poor: AUC 0.972 after one epoch.
    deadline_seconds: float = Field(default=1200, gt=0)
    architecture: Literal["xresnet18", "xresnet34", "xresnet50"] = "xresnet34"


def fit(
    data: TrainingData,
    recipe: DefaultRecipe,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
    devices: int = 1,
    start: Path | None = None,
) -> FitResult:
    """Train until validation loss plateaus, cool down, and export the epoch that is kept.

    Raises:
        TrainingFailed: when the data cannot be learned from, the loss diverges, or not one epoch fits the deadline.
        SystemExit: in all but the first of several processes, after the fit.
    """
    deadline = Deadline(recipe.deadline_seconds)
    check_data(data, "fastai", recipe.batch_size, devices)
    torch = _frameworks()
    from fastai.callback.progress import ProgressCallback  # noqa: F401  (gives a Learner its no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import BCEWithLogitsLossFlat
    from safetensors.torch import save_file

    device = _seeded_device(seed)
    ranks = Ranks.join(device)
    if ranks.count != devices:
        raise TrainingFailed(f"fastai: expected {devices} processes, found {ranks.count}: see fastai/ranks.launch")
    schedule = schedule_of(recipe, len(data.train_images), warm=start is not None, small_share=recipe.small_share)
    train = Shuffled(data.train_images, data.train_labels, recipe, seed, schedule.first, ranks)
    valid = Batches(ranks.share(data.valid_images), ranks.share(data.valid_labels), device)
    model = _network(recipe.architecture)
    if start:
        _begin_with(model, start, recipe.warm_share)
    model = model.to(device)
    folder.mkdir(parents=True, exist_ok=True)

    versions = _versions() | ({"devices": str(devices)} if devices > 1 else {})
    progress = FitProgress(schedule, Checkpoints.of(folder, data, recipe, seed, versions), deadline, Selection(data))
    learn = Learner(
        DataLoaders(train, valid, path=folder, device=device),
        model,
        loss_func=BCEWithLogitsLossFlat(),
        opt_func=_optimiser(),
        wd=recipe.weight_decay,
        cbs=callbacks(recipe, progress, on_epoch, ranks, len(data.valid_labels)),
        path=folder,
    )
    if device.type == "cuda":
        learn.to_channelslast()  # with mixed precision: what a GPU's tensor cores want
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai lags behind torch's deprecations
        fit_from_checkpoint(learn, progress, ranks)

    ranks.leave()
    if not ranks.first:
        raise SystemExit
    refuse_no_epoch(progress, "fastai", _describe(device, devices))
    onnx = folder / "model.onnx"
    model = learn.model.cpu().float().to(memory_format=torch.contiguous_format)
    logits = _scores(_scorer(model, recipe.views, None), data.valid_images)
    temperature = temperature_of(logits, data.valid_labels > 0.5)
    _export(_scorer(model, recipe.views, temperature), data.train_images.shape[1], onnx)
    # The temperature in float64, so that the weights score like the model file.
    save_file({**state_of(model), "temperature": torch.tensor(temperature, dtype=torch.float64)}, weights_of(progress))
    progress.checkpoints.forget()
    return FitResult(
        onnx=onnx,
        weights=weights_of(progress),
        device=_describe(device, devices),
        versions=_versions(),
        temperature=temperature,
        batch=draw_batch(data, recipe.batch_size, recipe.variation, seed, folder),
        **outcome(progress),
    )


def predict_native(weights: Path, recipe: DefaultRecipe, images: Images) -> npt.NDArray[np.float32]:
    """Return the probability of Parasitized for each cell, float32 [n], computed by torch from the weights file."""
    _frameworks()
    from safetensors.torch import load_file

    state = load_file(weights)
    model, temperature = _network(recipe.architecture), float(state.pop("temperature"))
    model.load_state_dict(state)
    return _scores(_scorer(model, recipe.views, temperature), images)


def _network(architecture: str) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n, 1]."""
    import torch
    from fastai.vision.models import xresnet

    class Cells(torch.nn.Module):  # type: ignore[misc]
        """uint8 [n, side, side, 3] -> channels-first floats: each cell's colours minus their mean, its padding 0.

        Stain and light differ between slides by more than a parasite differs from the cell around it.
        """

        def forward(self, images: Any) -> Any:
            cells = images.permute(0, 3, 1, 2).float() / 255
            inside = (cells.amax(1, keepdim=True) > BLACK).float()
            pixels = inside.sum((2, 3), keepdim=True).clamp(min=1)  # 0 in an all-black picture
            mean = (cells * inside).sum((2, 3), keepdim=True) / pixels
            return (cells - mean) * inside * CONTRAST

    return torch.nn.Sequential(Cells(), getattr(xresnet, architecture)(n_out=1))


def _scorer(model: Any, views: int, temperature: float | None) -> Any:
    """Return uint8 [n, side, side, 3] -> probability [n], calibrated; without a temperature the logit [n].

    Logits are the mean over a cell and its mirror images.
    """
    import torch

    class Scorer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            for axis in MIRRORED[views]:
                images = torch.cat([images, images.flip(axis)])
            logits = self.model(images).reshape(views, -1).mean(dim=0)
            return logits if temperature is None else torch.sigmoid(logits / temperature)

    return Scorer().eval()


def _begin_with(model: Any, weights: Path, share: float) -> None:
    """Blend the weights and statistics of an earlier fit into the random initial ones."""
    import torch
    from safetensors.torch import load_file

    earlier, fresh = load_file(weights), model.state_dict()
    del earlier["temperature"]
    model.load_state_dict(
        {
            name: torch.lerp(drawn, earlier[name], share) if drawn.is_floating_point() else drawn
            for name, drawn in fresh.items()
        }
    )


def _scores(scorer: Any, images: Images) -> npt.NDArray[np.float32]:
    import torch

    scores = np.empty(len(images), np.float32)
    with torch.inference_mode():
        for chosen in releasing(chunks(np.arange(len(images)))):
            scores[chosen] = scorer(torch.from_numpy(images[chosen])).numpy()
    return scores


def _export(scorer: Any, side: int, path: Path) -> None:
    import onnx
    import torch

    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    raw = path.with_name(".exported.onnx")
    with warnings.catch_warnings(), printing_to_log():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            scorer,
            (example,),
            raw,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finish_onnx(onnx.load(raw), path)
    raw.unlink()


def _frameworks() -> Any:
    """Import torch and fastai, without the warnings of their imports.

    By default torch's OpenMP threads spin for about 17 ms whenever they wait for each other. On a shared core that is
    fatal: beside one busy process a batch of 32 took 8-12 s instead of 0.5 s. After a short spin they sleep instead:
    1 s beside a busy process, 0.6 s alone (2 cores, 64 px).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # both are read once, when torch is first imported
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fastai.learner  # noqa: F401
        import torch
    return torch


def _seeded_device(seed: int) -> Any:
    """Return this machine's device, with all its random generators seeded."""
    import torch
    from fastai.torch_core import set_seed

    set_seed(seed, reproducible=True)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # Costs nothing on a CPU. On a GPU a few kernels have no deterministic version: there it is best effort.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    return device


def _describe(device: Any, devices: int) -> str:
    import torch

    name = f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    return name if devices == 1 else f"{devices} x {name}"


def _optimiser() -> Any:
    """Return AdamW with fastai's constants, as torch's fused kernel.

    fastai's own Adam passes over 21 million weights a dozen times a step: on a CPU that took as long as the gradients.
    """
    import torch
    from fastai.optimizer import OptimWrapper

    return partial(OptimWrapper, opt=torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5, fused=True)


def _versions() -> dict[str, str]:
    import fastai
    import torch

    return {"torch": torch.__version__, "fastai": fastai.__version__, "onnx_opset": str(OPSET)}
