"""PyTorch checkpoints into ours and back, without PyTorch."""
