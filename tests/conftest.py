import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch_geometric may do.
    os.environ.setdefault('TRITON_INTERPRET', '1')
