"""Tests of the method share `small_model`, a pipeline of very small networks, and `guided_model`, a guided sampler."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
