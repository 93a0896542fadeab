r"""Data: the published files, and generated twins of them."""
from .feature_files import FeatureFiles
from .files import read_features, read_labels, write_labels
from .synthetic_faces import SyntheticFaces

__all__ = [
    'FeatureFiles',
    'SyntheticFaces',
    'read_features',
    'read_labels',
    'write_labels',
]
