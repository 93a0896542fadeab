r"""Synthetic twins of the field's benchmarks, made in seconds."""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Dict, Iterator, Optional, Tuple

import numpy as np
import torch
from torch_geometric.data import Data

from torch_sdt.io import PathLike, atomic_path
from torch_sdt.progress import progress

Block = Tuple[np.ndarray, np.ndarray]
Range = Tuple[float, float]


@dataclass(frozen=True)
class World:
    r"""What one twin is made of.

    Lengths are in units of an identity's centre, which has length 1; a
    direction is a standard normal vector divided by :math:`\sqrt D`, so that
    its length is close to 1.
    """
    family_size: Tuple[int, int] = (6, 10)  # look-alikes in one family
    family_weight: Range = (.45, .70)  # w, how alike a family's members are
    spread: Range = (.5, 1.8)  # an identity's own scale, log-uniform
    mode_share: Tuple[float, ...] = (.5, .3, .2)  # images in each mode
    mode_scale: float = .4  # length of a mode's offset
    num_nuisances: int = 12  # directions shared by all identities
    nuisance_scale: float = .3  # length of an image's nuisance
    num_cameras: int = 0  # offsets shared by all identities
    camera_scale: float = 0.  # length of a camera's offset
    noise_scale: float = .8  # length of the noise at quality 1
    quality_shape: float = 4.  # of the Gamma law (mean 1) of noise scales
    bad_share: float = .05  # images of bad quality
    bad_factor: float = 2.5  # how much noisier those are
    offset: float = 0.  # what all unit features share, after all else
    small_share: float = 1.  # identities with log-normal sizes
    small_log_mean: float = 0.  # of the logarithm of their size
    small_log_std: float = 1.
    large_mean: float = 0.  # size of the others, normal
    large_std: float = 1.


PRESETS: Dict[str, World] = {
    'ms1m': World(
        family_weight=(.55, .75), mode_scale=.45, nuisance_scale=.4,
        noise_scale=1.03, quality_shape=3.5, bad_share=.07, bad_factor=4.,
        offset=.84,
        small_share=.19, small_log_mean=1.70, small_log_std=.91,
        large_mean=81.9, large_std=29.9),
    'deepfashion': World(
        family_weight=(.86, .97), mode_scale=.72, nuisance_scale=.6,
        noise_scale=1.42, quality_shape=2.5, bad_share=.07, bad_factor=2.8,
        offset=1.85,
        small_log_mean=1.51, small_log_std=.9),
    'msmt17': World(
        family_weight=(.75, .89), mode_scale=.95, nuisance_scale=.45,
        num_cameras=15, camera_scale=.45,
        noise_scale=.92, quality_shape=3.5, bad_share=.06, bad_factor=2.9,
        offset=.45,
        small_log_mean=3.18, small_log_std=.7),
}

SPLITS = ('train', 'val', 'test')

_DIM = 256
_NUM_IMAGES = 20_000
_ROWS = 8192  # a block: part of the definition of the data, not a setting
# Independent random streams of one seed and preset.
_WORLD, _SIZES, _IDENTITIES, _ORDER, _IMAGES = range(5)


class SyntheticFaces:
    r"""A synthetic twin of a benchmark of the field.

    The features of MS1M, DeepFashion and MSMT17 cannot be shipped. A twin is
    a random world as hard as the real one: the classical baselines land near
    their published scores on it (``benchmarks/calibrate_twins.py`` prints how
    near). Scores on a twin say how methods compare, not what they would
    reach on the real files.

    The feature of an image of identity :math:`c` is the unit vector along
    :math:`\mathbf{z} / \lVert \mathbf{z} \rVert + \beta \mathbf{h}`, where

    .. math::
        \mathbf{z} = \mathbf{c}_c + s_c \, \mathbf{m}_{c, j}
        + \sum_{n=1}^{12} a_n \mathbf{v}_n + \mathbf{u}_b
        + s_c \, q \, \sigma \, \mathbf{g}.

    * **Families**: 6 to 10 identities look alike. With the family's direction
      :math:`\mathbf{f}` and the identity's own :math:`\mathbf{o}_c` the
      centre is :math:`\mathbf{c}_c = w \mathbf{f} + \sqrt{1 - w^2}
      \mathbf{o}_c`, where :math:`w`, from .55 to .75 for :obj:`"ms1m"` and
      higher for the others, belongs to the family.
    * **Spread**: :math:`s_c`, log-uniform in :math:`[.5, 1.8]`, so that no
      threshold suits all identities.
    * **Modes**: each identity has three, :math:`\mathbf{m}_{c, j}` (pose,
      age), unequally frequent.
    * **Nuisance**: a dozen directions :math:`\mathbf{v}_n` (light, camera)
      with normal coefficients :math:`a_n` for each image, and for
      :obj:`"msmt17"` the offset :math:`\mathbf{u}_b` of one of 15 cameras.
      They belong to the world: the splits of one seed share them.
    * **Quality**: the noise, along a random direction :math:`\mathbf{g}`, has
      the scale :math:`q \sigma` with :math:`q` from a Gamma law of mean 1;
      a few percent are bad images, several times noisier.
    * **Offset**: all features share :math:`\beta \mathbf{h}`, which moves a
      cosine :math:`a` to about :math:`(a + \beta^2) / (1 + \beta^2)` and
      changes little else. It puts the best thresholds where the benchmark has
      them; ``center=True`` takes it out again.
    * **Sizes**: :obj:`"ms1m"` mixes a log-normal and a normal law, the two
      humps of the sizes in MS-Celeb-1M, fitted by maximum likelihood to the
      histogram of a split of 641,454 images (81 % of the identities
      log-normal, 1.70 and .91; the others 61.6 ± 22.4 images). The benchmark
      has larger identities, 68 images on average: the two shares are
      exchanged, and the large hump is stretched to 81.9 ± 29.9. The other two
      presets are log-normal, with means of 7 and 31 images.

    Identities of different splits are disjoint draws. Rows are in random
    order. The same arguments give the same bits, held in memory, streamed by
    :meth:`blocks` or written by :meth:`write`.

    Args:
        preset (str, optional): :obj:`"ms1m"`, :obj:`"deepfashion"` or
            :obj:`"msmt17"`. (default: :obj:`"ms1m"`)
        num_identities (int, optional): The number of identities; the number
            of images follows. (default: :obj:`None`)
        seed (int, optional): The world, a non-negative number.
            (default: :obj:`0`)
        split (str, optional): :obj:`"train"`, :obj:`"val"` or
            :obj:`"test"`. (default: :obj:`"train"`)
        num_images (int, optional): The exact number of images: identities
            are added until it is reached, and the last one is cut.
            (default: 20,000 without :obj:`num_identities`)
        images_per_identity (tuple, optional): The smallest and the largest
            number of images of an identity, drawn uniformly, in place of the
            preset's sizes. (default: :obj:`None`)
        dim (int, optional): Features per image. (default: :obj:`256`)

    Attributes:
        x (numpy.ndarray): Unit features, float32, shape ``[N, dim]``.
        y (numpy.ndarray): Identities 0, 1, …, int64, shape ``[N]``.
        prototypes (numpy.ndarray): :math:`\mathbf{c}_c + s_c \,
            \mathbf{m}_{c, j}`, what the images of each identity's modes
            scatter around, float32, shape ``[identities, modes, dim]``: no
            method may know them, they tell how well any could do.

    Raises:
        ValueError: For an unknown preset or split, for both
            :obj:`num_identities` and :obj:`num_images`, or for a number that
            is too small.

    **STATS:**

    .. list-table::
        :widths: 20 20 20 20
        :header-rows: 1

        * - Preset
          - images
          - identities
          - images per identity
        * - ms1m
          - 20,000
          - ~294
          - 68
        * - deepfashion
          - 20,000
          - ~2,900
          - 7
        * - msmt17
          - 20,000
          - ~650
          - 31
    """
    def __init__(
        self,
        preset: str = 'ms1m',
        num_identities: Optional[int] = None,
        seed: int = 0,
        split: str = 'train',
        num_images: Optional[int] = None,
        images_per_identity: Optional[Tuple[int, int]] = None,
        dim: Optional[int] = None,
    ) -> None:
        people = _People(preset, num_identities, seed, split, num_images,
                         images_per_identity, dim)
        self.preset, self.seed, self.split = preset, seed, split
        self.y = people.y
        self.prototypes = people.prototypes()
        self.x = np.empty((self.y.size, people.dim), dtype=np.float32)
        for start in range(0, self.y.size, _ROWS):
            self.x[start:start + _ROWS] = people.images(start)

    @property
    def num_nodes(self) -> int:
        r"""The number of images :math:`N`."""
        return self.x.shape[0]

    @property
    def dim(self) -> int:
        r"""The number of features of an image."""
        return self.x.shape[1]

    @property
    def num_identities(self) -> int:
        r"""The number of identities."""
        return int(self.y.max()) + 1

    def to_data(self) -> Data:
        r"""The images as a graph without edges: a
        :class:`~torch_geometric.data.Data` with ``x`` and ``y``, which shares
        the memory of the arrays.
        """
        return Data(x=torch.from_numpy(self.x), y=torch.from_numpy(self.y))

    def __repr__(self) -> str:
        return (f"{self.__class__.__name__}('{self.preset}', "
                f"num_nodes={self.num_nodes}, "
                f"num_identities={self.num_identities}, dim={self.dim}, "
                f"seed={self.seed}, split='{self.split}')")

    # Without holding the features ###########################################

    @classmethod
    def blocks(
        cls,
        preset: str = 'ms1m',
        num_identities: Optional[int] = None,
        seed: int = 0,
        split: str = 'train',
        num_images: Optional[int] = None,
        images_per_identity: Optional[Tuple[int, int]] = None,
        dim: Optional[int] = None,
    ) -> Iterator[Block]:
        r"""The same data row block by row block, in bounded memory.

        Takes the arguments of the class, checked at once.

        Yields:
            (numpy.ndarray, numpy.ndarray): ``x`` and ``y`` of at most 8,192
            images.
        """
        people = _People(preset, num_identities, seed, split, num_images,
                         images_per_identity, dim)
        return ((people.images(start), people.y[start:start + _ROWS])
                for start in range(0, people.y.size, _ROWS))

    @classmethod
    def write(
        cls,
        root: PathLike,
        name: str,
        preset: str = 'ms1m',
        num_identities: Optional[int] = None,
        seed: int = 0,
        split: str = 'train',
        num_images: Optional[int] = None,
        images_per_identity: Optional[Tuple[int, int]] = None,
        dim: Optional[int] = None,
        verbose: bool = False,
    ) -> Tuple[str, str]:
        r"""Writes the same data to files of the published layout, in bounded
        memory.

        ``features/<name>.bin`` is raw little-endian float32, row by row,
        without a header; ``labels/<name>.meta`` has one identity per line.
        Both appear when both are complete.

        Args:
            root (str): The folder of ``features`` and ``labels``.
            name (str): The name of the data set, as in ``part1_test``.
            preset (str, optional): As for the class.
            num_identities (int, optional): As for the class.
            seed (int, optional): As for the class.
            split (str, optional): As for the class.
            num_images (int, optional): As for the class.
            images_per_identity (tuple, optional): As for the class.
            dim (int, optional): As for the class.
            verbose (bool, optional): If :obj:`True`, shows a progress bar
                where the output is a terminal. (default: :obj:`False`)

        Returns:
            (str, str): The paths of the features and of the labels.

        Raises:
            ValueError: As for the class, or if :obj:`name` is no plain name.
        """
        if name in {'', '.', '..'} or os.path.basename(name) != name:
            raise ValueError(f"'name' must be a plain file name, without "
                             f"folders (got {name!r})")
        people = _People(preset, num_identities, seed, split, num_images,
                         images_per_identity, dim)
        features = os.path.join(os.fspath(root), 'features', f'{name}.bin')
        labels = os.path.join(os.fspath(root), 'labels', f'{name}.meta')
        for path in (features, labels):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with atomic_path(features) as bin_path, \
                atomic_path(labels) as meta_path, \
                open(bin_path, 'wb') as bin_file, \
                open(meta_path, 'w', encoding='ascii', newline='\n') as meta, \
                progress(people.y.size, f'Writing {name}', verbose) as bar:
            for start in range(0, people.y.size, _ROWS):
                y = people.y[start:start + _ROWS]
                people.images(start).astype('<f4', copy=False).tofile(
                    bin_file)
                meta.writelines(f'{identity}\n' for identity in y.tolist())
                bar.update(y.size)
        return features, labels


class _People:
    # Everything about a data set but its images: who is on each row, and what
    # each identity looks like.

    def __init__(
        self,
        preset: str,
        num_identities: Optional[int],
        seed: int,
        split: str,
        num_images: Optional[int],
        images_per_identity: Optional[Tuple[int, int]],
        dim: Optional[int],
    ) -> None:
        _check(preset, num_identities, seed, split, num_images,
               images_per_identity, dim)
        self.world = PRESETS[preset]
        self.dim = _DIM if dim is None else dim
        self._key = (seed, list(PRESETS).index(preset))
        self._split = 1 + SPLITS.index(split)
        if num_identities is None and num_images is None:
            num_images = _NUM_IMAGES
        size = _sizes(self.world, self._stream(_SIZES), num_identities,
                      num_images, images_per_identity)
        y = np.repeat(np.arange(size.size, dtype=np.int64), size)
        # The order of rows tells nothing about identities.
        self.y = self._stream(_ORDER).permutation(y)
        self._draw_world()
        self._draw_identities(size.size)

    def _stream(self, what: int, block: int = 0) -> np.random.Generator:
        # The world is the same in all splits.
        split = 0 if what == _WORLD else self._split
        return np.random.default_rng([*self._key, split, what, block])

    def _directions(self, rng: np.random.Generator, *shape: int
                    ) -> np.ndarray:
        out = rng.standard_normal((*shape, self.dim), dtype=np.float32)
        out *= np.float32(1 / np.sqrt(self.dim))
        return out

    def _draw_world(self) -> None:
        world, rng = self.world, self._stream(_WORLD)
        scale = world.nuisance_scale / np.sqrt(world.num_nuisances)
        self.nuisance = self._directions(rng, world.num_nuisances)
        self.nuisance *= np.float32(scale)
        self.camera = self._directions(rng, world.num_cameras)
        self.camera *= np.float32(world.camera_scale)
        self.offset = _unit(self._directions(rng, 1))
        self.offset *= np.float32(world.offset)

    def _draw_identities(self, num: int) -> None:
        world, rng = self.world, self._stream(_IDENTITIES)
        low, high = world.family_size
        size = rng.integers(low, high + 1, size=-(-num // low))
        family = np.repeat(np.arange(size.size), size)[:num]
        low_w, high_w = world.family_weight
        w = rng.uniform(low_w, high_w, size.size)[family, None]
        w = w.astype(np.float32)
        alike = _unit(self._directions(rng, size.size))[family]
        own = _unit(self._directions(rng, num))
        self.centre = _unit(w * alike + np.sqrt(1 - w**2) * own)
        narrow, wide = np.log(world.spread)
        spread = np.exp(rng.uniform(narrow, wide, num))
        self.spread = spread.astype(np.float32)
        self.mode = self._directions(rng, num, len(world.mode_share))
        self.mode *= (world.mode_scale * self.spread)[:, None, None]

    def prototypes(self) -> np.ndarray:
        # What the images of each mode scatter around.
        return self.centre[:, None] + self.mode

    def images(self, start: int) -> np.ndarray:
        # The block of rows from `start` on, each block from its own stream.
        world, rng = self.world, self._stream(_IMAGES, start // _ROWS)
        y = self.y[start:start + _ROWS]
        mode = rng.choice(len(world.mode_share), size=y.size,
                          p=world.mode_share)
        quality = rng.gamma(world.quality_shape, 1 / world.quality_shape,
                            size=y.size)
        quality[rng.random(y.size) < world.bad_share] *= world.bad_factor
        noise = (world.noise_scale * quality).astype(np.float32)
        x = self._directions(rng, y.size)
        x *= (noise * self.spread[y])[:, None]
        x += self.centre[y]
        x += self.mode[y, mode]
        light = rng.standard_normal((y.size, world.num_nuisances),
                                    dtype=np.float32)
        # Not `@`: its bits may depend on the number of threads.
        x += np.einsum('nk,kd->nd', light, self.nuisance)
        if world.num_cameras > 0:
            x += self.camera[rng.integers(world.num_cameras, size=y.size)]
        return _unit(_unit(x) + self.offset)


def _sizes(
    world: World,
    rng: np.random.Generator,
    num_identities: Optional[int],
    num_images: Optional[int],
    images_per_identity: Optional[Tuple[int, int]],
) -> np.ndarray:
    # As many as there are images is always enough: none has less than one.
    num = num_identities or num_images or 0
    if images_per_identity is not None:
        low, high = images_per_identity
        size = rng.integers(low, high + 1, size=num)
    else:
        small = rng.lognormal(world.small_log_mean, world.small_log_std, num)
        large = rng.normal(world.large_mean, world.large_std, num)
        is_small = rng.random(num) < world.small_share
        size = np.where(is_small, small, large)
        size = np.maximum(np.rint(size), 1).astype(np.int64)
    if num_images is not None:
        total = size.cumsum()
        last = int(np.searchsorted(total, num_images))
        size = size[:last + 1]
        size[-1] -= total[last] - num_images
    return size


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _check(
    preset: str,
    num_identities: Optional[int],
    seed: int,
    split: str,
    num_images: Optional[int],
    images_per_identity: Optional[Tuple[int, int]],
    dim: Optional[int],
) -> None:
    if preset not in PRESETS:
        raise ValueError(f"'preset' must be one of {list(PRESETS)} (got "
                         f"{preset!r})")
    if split not in SPLITS:
        raise ValueError(f"'split' must be one of {list(SPLITS)} (got "
                         f"{split!r})")
    if num_identities is not None and num_images is not None:
        raise ValueError(f"Give either 'num_identities' or 'num_images', not "
                         f"both (got {num_identities} and {num_images}): the "
                         f"one follows from the other")
    for name, value, low in (('num_identities', num_identities, 1),
                             ('num_images', num_images, 1),
                             ('dim', dim, 2), ('seed', seed, 0)):
        if value is not None and not _is_integer(value, low):
            raise ValueError(f"'{name}' must be an integer of at least {low} "
                             f"(got {value!r})")
    if images_per_identity is not None:
        pair = images_per_identity
        if (not isinstance(pair, (tuple, list)) or len(pair) != 2
                or not all(_is_integer(size, 1) for size in pair)
                or pair[0] > pair[1]):
            raise ValueError(f"'images_per_identity' must be a pair of "
                             f"integers 1 <= low <= high (got "
                             f"{pair!r})")


def _is_integer(value: object, low: int) -> bool:
    return (isinstance(value, (int, np.integer))
            and not isinstance(value, bool) and int(value) >= low)
