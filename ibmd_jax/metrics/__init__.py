"""Image quality: per-image metrics [B], set metrics over features [N, D]. A new one is one function and one line."""

from ibmd_jax.metrics.distances import feature_statistics, fid, kid
from ibmd_jax.metrics.pixels import psnr, ssim
from ibmd_jax.metrics.retrieval import retrieval_accuracy

PIXEL_METRICS = {"psnr": psnr, "ssim": ssim}
SET_METRICS = {"fid": fid, "kid": kid}

__all__ = ["PIXEL_METRICS", "SET_METRICS", "feature_statistics", "fid", "kid", "psnr", "retrieval_accuracy", "ssim"]
