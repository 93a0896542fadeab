import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import torch_sdt.typing
from torch_sdt.typing import check_count, require

PACKAGES = ['faiss', 'infomap', 'networkit', 'numba', 'torch_cluster',
            'matplotlib', 'finch', 'triton']


@pytest.mark.parametrize('package', PACKAGES)
def test_flags(package):
    flag = getattr(torch_sdt.typing, f'WITH_{package.upper()}')
    assert flag is (find_spec(package) is not None)


def test_every_flag_is_tested():
    flags = [name for name in vars(torch_sdt.typing) if name[:5] == 'WITH_']
    assert sorted(flags) == sorted(f'WITH_{p.upper()}' for p in PACKAGES)


def test_require():
    require(True, 'anything', 'nothing')
    with pytest.raises(ImportError) as info:
        require(False, 'knn', 'faiss-cpu')
    assert str(info.value) == "'knn' requires 'faiss-cpu'"


def test_check_count():
    check_count('epochs', 3)
    check_count('size', np.int64(2), least=2)
    for value in (1.5, '3', None, True, float('nan')):
        with pytest.raises(ValueError, match="'epochs' must be an integer"):
            check_count('epochs', value)
    with pytest.raises(ValueError, match="'size' must be at least 2 .got 1"):
        check_count('size', 1, least=2)


IMPORTS = '''
import sys
import torch, torch_geometric
before = set(sys.modules)
import torch_sdt.datasets, torch_sdt.metrics, torch_sdt.nn, torch_sdt.ops
import torch_sdt.transforms
from torch_sdt.neighbors import Neighbors
print(*(set(sys.modules) - before) & set(sys.argv[1:]))
'''


def test_imports_import_no_optional_package():
    # They are slow, may be absent, and two of them get in each other's way.
    out = subprocess.run([sys.executable, '-c', IMPORTS, *PACKAGES],
                         capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
