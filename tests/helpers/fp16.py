"""Mixed precision with a loss scaler, without a GPU."""

import torch
from accelerate import Accelerator


class FP16(Accelerator):
    """Stands in for mixed_precision="fp16", which needs a GPU.

    Everything that it does is accelerate's own.
    """

    mixed_precision = "fp16"

    def __init__(self, cpu=True):
        super().__init__(cpu=cpu)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
