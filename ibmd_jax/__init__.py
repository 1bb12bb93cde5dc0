"""Inverse bridge matching distillation in JAX: slow bridge models into one-step generators."""

__version__ = "0.1.0"
