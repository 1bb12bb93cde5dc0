"""Memory and time of a step before it runs: `python -m ibmd_jax.preflight`."""
