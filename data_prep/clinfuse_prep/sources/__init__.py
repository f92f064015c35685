"""Finding cases in a source folder: one file per layout, each turning files into `SourceCase`s."""

from clinfuse_prep.sources.case import SourceCase
from clinfuse_prep.sources.find import LAYOUTS, find_cases

__all__ = ["LAYOUTS", "SourceCase", "find_cases"]
