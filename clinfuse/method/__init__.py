"""CLIN-FuseDiff++: prior, denoiser, losses, guidance, sampling, uncertainty; pure torch."""
