"""One fastai training in several processes, a device each: torchrun's launcher, and what its ranks agree on.

torch's DistributedDataParallel averages the gradients. Everything that ends an epoch or a fit (the loss, the clock, the
validation scores) is added up over all ranks, so that each takes the same turn; only the first writes and speaks.
Imported, like torch itself, only by the processes that train with it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OUT_OF_MEMORY", "Ranks", "launch", "parallel"]

# What a rank leaves in the folder when its device has no memory left; the launcher then begins with half the batch.
OUT_OF_MEMORY = "out-of-memory"


def launch(devices: int, module: str, folder: Path, *arguments: str) -> None:
    """Run ``python -m module PARENT folder arguments...`` once for each device; when one fails, end all.

    Raises:
        MemoryError: when a rank had none left.
        RuntimeError: when a rank failed, which has told why by itself.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    told = folder / OUT_OF_MEMORY
    told.unlink(missing_ok=True)
    # All ranks are on this machine, and none of their business leaves it.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    # Each rank would start a thread for every core.
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // devices))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, max_restarts=0, monitor_interval=0.2,
        run_id="cells", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )  # fmt: skip
    command = [sys.executable, "-m", module, str(os.getpid()), str(folder), *arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        if told.exists():
            told.unlink()
            raise MemoryError(f"one of {devices} devices") from None
        rank, failure = error.get_first_failure()
        raise RuntimeError(f"rank {rank} of {devices} ended with exit code {failure.exitcode}") from None


@dataclass(frozen=True)
class Ranks:
    """The processes of one training, and which of them this is; alone, nothing here costs anything."""

    rank: int = 0
    count: int = 1
    device: Any = None

    @classmethod
    def join(cls, device: Any) -> Ranks:
        """Meet the other ranks, if this process was launched as one of several."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=device)
        import torch.distributed as dist

        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # fastai would gather every batch's loss by itself, and wait for ever where one rank has a batch more.
        del os.environ["WORLD_SIZE"]
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def share(self, items: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return this rank's part of ``items``; the parts differ by one item at most."""
        return np.array_split(items, self.count)[self.rank]

    def total(self, values: Sequence[float]) -> list[float]:
        """Add up each of ``values`` over all ranks; no number on one of them is no number on all."""
        if self.count == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.cpu()]

    def whole(self, part: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
        """Return the array of which each rank has its share, float32 [length]."""
        if self.count == 1:
            return part
        import torch
        import torch.distributed as dist

        full = np.zeros(length, np.float32)
        full[self.share(np.arange(length))] = part
        tensor = torch.from_numpy(full).to(self.device)
        dist.all_reduce(tensor)  # adding zeros changes no bit
        whole: npt.NDArray[np.float32] = tensor.cpu().numpy()
        return whole

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.total([0.0])

    def leave(self) -> None:
        """Part from the other ranks: what comes after the fit is the first one's alone.

        Whatever still refers to the group, as the wrapped model in its cycles does, would leave it to the end of the
        interpreter, where Gloo's threads bring the process down now and then (SIGABRT).
        """
        if self.count > 1:
            import torch.distributed as dist

            gc.collect()
            dist.destroy_process_group()


def parallel(ranks: Ranks) -> Any:
    """Return the fastai callback under which training averages the gradients of all ranks."""
    import torch.distributed as dist
    from fastai.callback.core import Callback
    from fastai.learner import TrainEvalCallback
    from torch.nn.parallel import DistributedDataParallel

    class Parallel(Callback):  # type: ignore[misc]
        """Wraps the model while it trains, and only then: to all else it is what it always is."""

        order = TrainEvalCallback.order - 1

        def before_fit(self) -> None:
            self.alone = self.learn.model
            on = [ranks.device] if ranks.device.type == "cuda" else None
            # The statistics of the normalisations are those of the first rank, before every batch.
            self.wrapped = DistributedDataParallel(self.alone, device_ids=on, broadcast_buffers=True)

        def before_train(self) -> None:
            self.learn.model = self.wrapped

        def before_validate(self) -> None:
            self.learn.model = self.alone
            for buffer in self.alone.buffers():
                dist.broadcast(buffer, 0)

        def after_fit(self) -> None:
            self.learn.model = self.alone
            del self.wrapped

    return Parallel()
