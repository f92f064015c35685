"""CLIN-FuseDiff++: prior, denoiser, losses, guidance, sampling, uncertainty; pure torch."""

from clinfuse.lean import follow_switch

follow_switch()
