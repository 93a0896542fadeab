import os

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
if workers > 1:
    # Read when torch and numba are imported: threads that wait for a core
    # that another process holds cost more than half of the time.
    share = str(max(1, (os.cpu_count() or 1) // workers))
    os.environ.setdefault('OMP_NUM_THREADS', share)

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch_geometric may do.
    os.environ.setdefault('TRITON_INTERPRET', '1')

# Minutes between them: if they came last, one process would wait for them.
_LONG = ('test_compare.py', 'test_examples.py', 'test_sdt_clustering.py')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)
