"""Ranges of torch's profiler and of NVTX around a callback."""

import threading
from typing import Any

import torch


class Ranges:
    def __init__(self, record_function: bool, nvtx: bool, title: str):
        self._title = title
        self._record_function = record_function
        self._nvtx: Any = torch.cuda.nvtx if nvtx else None
        # Each thread's stack of open ranges: a callback may call itself.
        self._thread = threading.local()

    def open(self) -> None:
        if self._nvtx:
            # Not `nvtx.range`, which formats the name: braces would raise.
            self._nvtx.range_push(self._title)
        if self._record_function:
            opened: Any = torch.profiler.record_function(self._title)
            opened.__enter__()
            vars(self._thread).setdefault("opened", []).append(opened)

    def close(self) -> None:
        if self._record_function:
            self._thread.opened.pop().__exit__(None, None, None)
        if self._nvtx:
            self._nvtx.range_pop()
