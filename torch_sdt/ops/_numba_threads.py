r"""Starts the threads of numba, once, and gives torch its own number back.

With OpenMP both share a runtime: when numba starts, it tells it to use as many
threads as there are cores, whatever torch was told before. Imported by kernels
that run in parallel.
"""
import numba
import torch

_before = torch.get_num_threads()
numba.get_num_threads()  # Starts them.
torch.set_num_threads(_before)
