"""profiler=torch: a trace of the steps, and the time of each operator."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from trainer.profile.recorder import Recorder, is_range
from trainer.profile.tables import write_table


class TorchRecorder(Recorder):
    """torch.profiler over the steps: trace-rank-N.json.gz and operators-rank-N.csv and .txt.

    options: of torch.profiler.profile.
    """

    options: dict[str, Any] = {}

    def start(self) -> None:
        """See Recorder. Work of earlier steps that a GPU has not done yet is waited for."""
        # Kineto prints a line at each start and stop to stderr, at any level that has a name.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_initialized():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self.profile = profile(activities=activities, **self.options)
        self.profile.start()

    def stop(self) -> None:
        """See Recorder; torch waits for the device."""
        self.profile.stop()
        self.profile.export_chrome_trace(str(self.file("trace", ".json.gz")))
        self._write_operators()

    def open_range(self, name: str) -> record_function:
        """See Recorder."""
        opened = record_function(name)
        opened.__enter__()
        return opened

    def close_range(self, opened: record_function) -> None:
        """See Recorder."""
        opened.__exit__(None, None, None)

    def _write_operators(self) -> None:
        """Sorted by the time that an operator takes itself, on the GPU where there is one."""
        # Without ranges: our own, whose times are in the trace, and torch's on a GPU, which are the kernels' once more.
        events: list[Any] = [
            event
            for event in self.profile.key_averages()
            if not is_range(event.key) and (event.device_type.name == "CPU" or not event.is_user_annotation)
        ]
        columns = ["operator", "calls", "self_cpu_ms", "cpu_ms"]
        on_device = any(event.self_device_time_total for event in events)
        events.sort(key=lambda e: (e.self_device_time_total, e.self_cpu_time_total), reverse=True)
        rows: list[list[str | int | float]] = []
        for event in events:
            row = [event.key, event.count, event.self_cpu_time_total / 1e3, event.cpu_time_total / 1e3]
            if on_device:
                row += [event.self_device_time_total / 1e3, event.device_time_total / 1e3]
            rows.append(row)
        columns += ["self_device_ms", "device_ms"] if on_device else []
        write_table(self.file("operators", ""), f"operators, {self.title}", columns, rows)
