"""Training: on tensors in memory, and as runs of files that stop and resume."""
