"""mav: an open Make-A-Video (arXiv 2209.14792). Importing this package loads nothing heavy."""

__version__ = "0.1.0"
