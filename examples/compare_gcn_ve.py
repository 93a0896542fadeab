# How good is GCN(V+E) on my features, and how good is everything else? The
# short form of `benchmarks/compare.py`, to copy: every estimator gets the same
# features and the same table; trained ones learn on labelled identities and
# cluster others, whose labels are used for scores only.
#
#     python examples/compare_gcn_ve.py
#
# The data here are a synthetic twin of MS1M: scores compare methods with each
# other, they are not those of MS1M.
import argparse
import time

from torch_sdt.cluster import (
    FCES,
    GCNVE,
    CosineMapEquation,
    KMeans,
    NDDeTPDi,
    SDTClustering,
    TopKJaccardClustering,
)
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features

parser = argparse.ArgumentParser()
parser.add_argument('--num-identities', type=int, default=60)
parser.add_argument('--epochs', type=int, help="of every training (default: "
                    "each method's own)")
parser.add_argument('--k', type=int, default=80)
args = parser.parse_args()

train, test = (SyntheticFaces('ms1m', num_identities=args.num_identities,
                              seed=0, split=split)
               for split in ('train', 'test'))
x = normalize_features(test.x, center=True)
neighbors = Neighbors.search(x, args.k)  # Once, for all of them.
budget = dict(k=args.k, center=True, epochs=args.epochs)

UNTRAINED = [
    KMeans(n_clusters=test.num_identities),  # It is told.
    CosineMapEquation(threshold=.58),
    FCES(),
    TopKJaccardClustering(),
]
TRAINED = [
    GCNVE(stage='gcn-v', **budget),
    GCNVE(**budget),
    GCNVE(density='ndde', distance='tpdi', **budget),  # GCN(V+E)++
    NDDeTPDi(**budget),
    SDTClustering(**budget),
]

print(f'SYNTHETIC TWIN of MS1M: {test.num_nodes:,} generated images of '
      f'{test.num_identities} identities; {train.num_nodes:,} of others to '
      f'learn from')
print(f'{"":54s} {"F_P":>5s} {"F_B":>5s} {"clusters":>9s} {"seconds":>8s}')
for model in UNTRAINED + TRAINED:
    start = time.perf_counter()
    if model in TRAINED:
        labels = model.fit(train.x, train.y).predict(x, neighbors=neighbors)
    else:
        labels = model.fit_predict(x, neighbors=neighbors)
    scores = clustering_scores(test.y, labels)
    name = str(model.set_params(**{
        key: None for key in ('k', 'epochs') if key in model.get_params()}))
    print(f'{" ".join(name.split()):54s} {100 * scores.pairwise.fscore:5.1f} '
          f'{100 * scores.bcubed.fscore:5.1f} {scores.num_clusters:9,d} '
          f'{time.perf_counter() - start:8.1f}', flush=True)
