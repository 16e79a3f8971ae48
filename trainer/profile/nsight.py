"""profiler=nsys: ranges and the start and stop of recording for Nsight Systems, which `trainer.launch.nsys` starts."""

from __future__ import annotations

import torch

from trainer.profile.recorder import Recorder


class NsightRecorder(Recorder):
    """nsys records from the first call of cudaProfilerStart to the first of cudaProfilerStop among its processes."""

    def start(self) -> None:
        """See Recorder."""
        torch.cuda.synchronize()
        torch.cuda.profiler.start()

    def stop(self) -> None:
        """See Recorder; the file is written by nsys."""
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    # Pushed and popped ranges belong to a thread, and autograd's threads change the state too.
    def open_range(self, name: str) -> int:
        """See Recorder."""
        return torch.cuda.nvtx.range_start(name)

    def close_range(self, opened: int) -> None:
        """See Recorder."""
        torch.cuda.nvtx.range_end(opened)
