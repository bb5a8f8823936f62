"""Training: stages, steps, engines and checkpoints. Needs torch.distributed, and no cluster."""
