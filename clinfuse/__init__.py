"""clinfuse: clinically aligned diffusion fusion of head images, the method and its evaluation."""

from clinfuse.lean import follow_switch

__version__ = "0.1.0"
RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis or treatment."

follow_switch()
