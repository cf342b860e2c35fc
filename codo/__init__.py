"""codo: contrastive pretraining of whole detectors, ablation-first."""

from codo._version import __version__

__all__ = ["__version__"]
