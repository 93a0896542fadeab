import inspect
from importlib import import_module

import pytest

# The names that users build on: to take one away, or to add one, is a
# decision, which is written down here.
PUBLIC = {
    'cluster': [
        'ARO',
        'AdaNETS',
        'CDP',
        'ChineseWhispers',
        'Clusformer',
        'CosineMapEquation',
        'EdgeRule',
        'Edges',
        'FCES',
        'FCESER',
        'FINCH',
        'GCNVE',
        'HAC',
        'HDBSCAN',
        'KMeans',
        'KNNDBSCAN',
        'LCEPCE',
        'LGCN',
        'LTC',
        'NDDeTPDi',
        'PairCls',
        'SDTClustering',
        'STARFC',
        'TopKJaccardClustering',
        'choose_rule',
        'split_identities',
    ],
    'ops': [
        'Background',
        'DensityPeaks',
        'Proposals',
        'cluster_proposals',
        'connected_components',
        'de_overlap',
        'density_peaks',
        'diff_attention',
        'early_stop',
        'edge_probability',
        'estimate_background',
        'expected_topk',
        'grouped_linear',
        'knn',
        'local_scaling',
        'locality_order',
        'map_equation',
        'map_equation_communities',
        'map_equation_ladder',
        'ndde',
        'neighbor_context',
        'node_intimacy',
        'normalize_features',
        'proposal_overlap',
        'rank_weighted_density',
        'reverse_values',
        'size_constrained_components',
        'structure_space',
        'subgraph_values',
        'super_vertices',
        'symmetric_values',
        'topk_edge_mask',
        'topk_jaccard',
        'topk_jaccard_csr',
        'topk_target',
        'tpdi',
        'transition_probability',
    ],
    'nn': [
        'AdaptiveFilter',
        'ClusformerModel',
        'DenseDiffAttentionConv',
        'EdgeGCN',
        'GCND',
        'GCNE',
        'GCNS',
        'GCNV',
        'HingeGCN',
        'LGCNModel',
        'LocalConnectivity',
        'MapEquationPool',
        'MergeEdges',
        'MixtureOfExperts',
        'NeighborEncoder',
        'PairClassifier',
        'PairTransformer',
        'PoolOutput',
        'SelectMapEquation',
        'SimilarityTransformer',
        'SparseDiffAttentionConv',
        'SparseDiffTransformer',
        'TopKPredictor',
    ],
    'nn.models': [
        'AdaptiveFilter',
        'ClusformerModel',
        'EdgeGCN',
        'GCND',
        'GCNE',
        'GCNS',
        'GCNV',
        'HingeGCN',
        'LGCNModel',
        'LocalConnectivity',
        'MixtureOfExperts',
        'NeighborEncoder',
        'PairClassifier',
        'PairTransformer',
        'SimilarityTransformer',
        'SparseDiffTransformer',
        'TopKPredictor',
    ],
    'loader': [
        'AlternatingLoader',
        'BatchLoader',
        'NeighborPairs',
        'NeighborSubgraphs',
        'PairBatch',
        'PivotBatch',
        'PivotSubgraphs',
        'ProposalBatch',
        'ProposalGraphs',
        'RandomViews',
        'StructurePreservedSubgraphs',
        'SubgraphBatch',
    ],
    'training': [
        'History',
        'Trainer',
        'infer',
    ],
    'transforms': [
        'CosineKNNGraph',
        'TopKJaccard',
    ],
    'datasets': [
        'FeatureFiles',
        'SyntheticFaces',
        'read_features',
        'read_labels',
        'write_labels',
    ],
    'metrics': [
        'ClusteringScores',
        'Scores',
        'bcubed_scores',
        'clustering_scores',
        'nmi_score',
        'pairwise_scores',
    ],
}


MEMBERS = [
    (f'{package}.{name}',
     getattr(import_module(f'torch_sdt.{package}'), name))
    for package, names in PUBLIC.items() for name in names
]


@pytest.mark.parametrize('package', PUBLIC)
def test_names(package):
    module = import_module(f'torch_sdt.{package}')
    assert sorted(module.__all__) == PUBLIC[package]
    assert inspect.getdoc(module)


@pytest.mark.parametrize('name,value', MEMBERS)
def test_docstrings(name, value):
    # Its own: not one that dataclass or NamedTuple made up or a base left.
    doc = value.__doc__ or ''
    assert len(doc.split()) > 5 and not doc.startswith(value.__name__ + '(')
    # Every argument stands in it, unless the class is a record whose fields
    # are named below `Attributes`.
    for argument in inspect.signature(value).parameters.values():
        if argument.kind not in {argument.VAR_KEYWORD,
                                 argument.VAR_POSITIONAL}:
            assert argument.name in doc, f"'{name}' is silent on {argument}"


@pytest.mark.parametrize('name,value', MEMBERS)
def test_annotations(name, value):
    function = value.__init__ if inspect.isclass(value) else value
    if isinstance(function, type(object.__init__)):
        return
    for argument in list(inspect.signature(function).parameters.values()):
        if argument.name != 'self':
            assert argument.annotation is not argument.empty, argument


@pytest.mark.parametrize('name,value', MEMBERS)
def test_public_methods_are_documented(name, value):
    if inspect.isclass(value):
        for method, function in vars(value).items():
            # Written here, not by PyG on construction.
            own = getattr(function, '__module__', None) == value.__module__
            if own and inspect.isfunction(function) and method[0] != '_':
                # A method of a base keeps the base's words.
                assert inspect.getdoc(getattr(value, method)), method


def test_headline_names():
    import torch_sdt
    assert sorted(torch_sdt.__all__) == [
        'CosineKNNGraph', 'MapEquationPool', 'SDTClustering',
        'SparseDiffAttentionConv', 'TopKJaccard', 'TopKJaccardClustering'
    ]
    for name in torch_sdt.__all__:
        assert inspect.getdoc(getattr(torch_sdt, name))
