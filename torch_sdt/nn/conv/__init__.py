r"""Message passing layers, and their twins for dense batches."""
from .dense_diff_attention_conv import DenseDiffAttentionConv
from .sparse_diff_attention_conv import SparseDiffAttentionConv

__all__ = [
    'SparseDiffAttentionConv',
    'DenseDiffAttentionConv',
]
