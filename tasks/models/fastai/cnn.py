"""fastai's XResNet34, trained from scratch on cells in memory with fastai's Learner and callbacks.

On unseen patients, from 3,770 real cells, in six to eleven CPU minutes: accuracy 0.963, AUC 0.991 (five parts of 120
patients; ``python -m benchmarks.training CELLS --folder WORK``, docs/training.md).
Probabilities of the file and of torch agree to 3e-4 (half precision). No figure is from a GPU.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import expit

from infra.scoring.model_file import INPUT, LOGIT
from tasks.models import Cells, Deadline, Device, FitResult, Images, Recipe, TrainingData
from tasks.models.device import why_no_gpu
from tasks.models.fastai.batches import Batches, Shuffled, chunks
from tasks.models.fastai.callbacks import journal, printing_to_log, state_of
from tasks.models.memory import releasing
from tasks.models.onnx_file import finish_onnx
from tasks.models.preparation import (
    BLACK,
    CONTRAST,
    MIRRORED,
    check_data,
    draw_batch,
    outcome,
    refuse_no_epoch,
    schedule_of,
)
from tasks.models.progress import FitProgress
from tasks.models.selection import Selection
from validation.records import EpochRecord
from validation.statistics.calibration import temperature_of

RECIPE_VERSION = 7
OPSET = 20


class DefaultRecipe(Recipe):
    """Hyperparameters of the fastai CNN, each with the reason for its number."""

    # Two fewer than a single network wants: five members of eight epochs take two fifths longer; each gains
    # 0.012 of log loss by them (docs/training.md).
    epochs: int = Field(default=6, gt=0)
    # A small set takes few steps an epoch: it gets more epochs, eighteen for 1,100 cells.
    min_steps: int = Field(default=300, ge=0)
    # 72 steps an epoch: large enough for batch normalisation, small enough to converge in a few epochs.
    batch_size: int = Field(default=64, ge=2)
    # The peak of the one cycle. The only value tried.
    learning_rate: float = Field(default=3e-3, gt=0)
    # Twice fastai's default, for 21 million weights on 4,641 cells. The only value tried.
    weight_decay: float = Field(default=0.02, ge=0)
    # The first epochs see smaller cells, at two thirds of the cost, while the network learns coarse features.
    small_share: float = Field(default=0.5, ge=0, le=1)
    small_size: float = Field(default=0.75, gt=0, le=1)
    # With six epochs the rate hardly stays at its peak: one cycle, as fastai has it (Smith 2018, arXiv:1803.09820).
    warmup: float = Field(default=1.5, ge=0)
    cooldown: int = Field(default=4, gt=0)
    # Ends longer schedules early.
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
) -> FitResult:
    """Train until the tuning patients' loss plateaus, cool down, and export the epoch that is kept.

    Raises:
        TrainingFailed: when the data cannot be learned from, the loss diverges, or not one epoch fits the deadline.
    """
    deadline = Deadline(recipe.deadline_seconds)
    check_data(data, "fastai")
    torch = _frameworks()
    from fastai.callback.progress import ProgressCallback  # noqa: F401  (gives a Learner its no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import BCEWithLogitsLossFlat
    from safetensors.torch import save_file

    device = _seeded_device(seed)
    schedule = schedule_of(recipe, len(data.train_images), small_share=recipe.small_share)
    train = Shuffled(data.train_images, data.train_labels, recipe, seed, schedule.first, device)
    tuning = Batches(data.tuning_images, data.tuning_labels, device)
    folder.mkdir(parents=True, exist_ok=True)

    progress = FitProgress(schedule, deadline, Selection(data))
    learn = Learner(
        DataLoaders(train, tuning, path=folder, device=device),
        network(recipe.architecture).to(device),
        loss_func=BCEWithLogitsLossFlat(),
        opt_func=_optimiser(),
        wd=recipe.weight_decay,
        cbs=journal(recipe, progress, on_epoch),
        path=folder,
    )
    if device.type == "cuda":
        learn.to_channelslast()  # with mixed precision: what a GPU's tensor cores want
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai lags behind torch's deprecations
        learn.fit(schedule.epochs)
    refuse_no_epoch(progress, "fastai", _describe(device))

    weights, onnx = folder / "weights.safetensors", folder / "model.onnx"
    model = learn.model.cpu().float().to(memory_format=torch.contiguous_format)
    logits = _scores(_scorer(model, recipe.views), data.tuning_images)
    temperature = temperature_of(logits, data.tuning_labels > 0.5)
    _export(_scorer(model, recipe.views, temperature), data.train_images.shape[1], onnx)
    # The temperature in float64, so that the weights score like the model file.
    save_file({**state_of(model), "temperature": torch.tensor(temperature, dtype=torch.float64)}, weights)
    return FitResult(
        onnx=onnx,
        weights=weights,
        device=_describe(device),
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
    model, temperature = network(recipe.architecture), float(state.pop("temperature"))
    model.load_state_dict(state)
    logits = _scores(_scorer(model, recipe.views, temperature), images)
    return np.asarray(expit(logits), np.float32)


def device() -> Device:
    """Return what ``fit`` trains on here, by torch's word.

    Importing torch opens all of CUDA's libraries, or fails.
    """
    torch = _frameworks()
    if torch.cuda.is_available():
        return Device(_describe(torch.device("cuda")))
    try:
        torch.cuda.init()
        own_words = ""
    except (RuntimeError, AssertionError) as error:
        own_words = str(error).partition("\n")[0]
    return Device("cpu", why_no_gpu("torch", torch.version.cuda or "", list, own_words))


def network(architecture: str) -> Any:
    """Return a torch module, uint8 [n, side, side, 3] -> logit [n, 1], not yet divided by the temperature."""
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


def _scorer(model: Any, views: int, temperature: float = 1.0) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n], the mean over a cell and its mirror images, by ``temperature``."""
    import torch

    class Scorer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            for axis in MIRRORED[views]:
                images = torch.cat([images, images.flip(axis)])
            return self.model(images).reshape(views, -1).mean(dim=0) / temperature

    return Scorer().eval()


def _scores(scorer: Any, images: Cells) -> npt.NDArray[np.float32]:
    import torch

    scores = np.empty(len(images), np.float32)
    with torch.inference_mode():
        for chosen in releasing(chunks(np.arange(len(images)))):
            scores[chosen] = scorer(torch.from_numpy(images[chosen])).numpy()
    return scores


def _export(scorer: Any, side: int, path: Path) -> None:
    """Write the model file with torch's older exporter: 0.6 s, where the one over torch.export takes 8."""
    import onnx
    import torch

    raw = io.BytesIO()
    with warnings.catch_warnings(), printing_to_log():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            scorer,
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            raw,
            input_names=[INPUT],
            output_names=[LOGIT],
            dynamic_axes={INPUT: {0: "n"}, LOGIT: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
    finish_onnx(onnx.load_model_from_string(raw.getvalue()), path)


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Costs nothing on a CPU. On a GPU a few kernels have no deterministic version: there it is best effort.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    return device


def _describe(device: Any) -> str:
    import torch

    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


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
