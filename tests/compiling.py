"""jax.jit without XLA's optimisations, for large networks on few numbers: long to compile, and quick to run."""

import functools

import jax

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
