"""The training loop and what it stands on: sharding, checkpoints, optimisers, evaluation, pictures and logs."""
