"""Shared set-up: Triton runs interpreted where there is no GPU, and tests take every backend that is here."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
