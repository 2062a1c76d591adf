"""Groups of alike maps within a class: a model that has two ways to know a class shows two kinds of maps.

Reference:
    Lapuschkin et al., Unmasking Clever Hans predictors and assessing what machines really learn, Nature Communications 10, 2019
    (SpRAy): spectral clustering of maps on a graph of nearest neighbours, with the eigengap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline._optional import optional

Array = np.ndarray[Any, np.dtype[Any]]
LEAST = 20  # maps of a class, below which no groups are looked for
ALPHA = 0.05
_NEIGHBOURS = 10
_MOST = 6  # groups of a class
_AT_ONCE = 400  # maps that make the graph; the others join the group of the one nearest to them
_COPIES = 39  # runs of the null: 1 of 40 is the least p


@dataclass(frozen=True, eq=False)
class Cluster:
    """Alike maps of one class.

    Attributes:
        of: the class.
        number: from 1, the most unusual first.
        members: indices of its maps in the `Heats`, the most typical first.
        share: of the class's maps.
        separation: how much more alike its maps are to their own mean than to that of the class's other maps: the mean difference of
            the two cosines, -1 to 1.
        p: how often as many maps drawn from all classes have a group that stands out as much; None without other classes.
        mean: (h, w) mean of its maps' shares.
    """

    of: str
    number: int
    members: Array
    share: float
    separation: float
    p: float | None
    mean: Array


def clusters_of(
    name: str, shares: Array, members: Array, others: Array, *, seed: int = 0, copies: int = _COPIES
) -> tuple[Cluster, ...]:
    """The groups of a class, small, far and consistent ones first; none where all maps are of one kind.

    A permutation test says how unusual each is: as many maps are drawn from all classes together, grouped anew, and the most outstanding
    of their groups counts. So having looked for groups costs nothing, and what all classes share is not unusual.

    Args:
        name: the class.
        shares: (N, h, w) of all maps.
        members: (n,) indices of the class's maps.
        others: (m,) indices of the maps of all other classes.
        seed: of the draws, and of which maps make the graph.
        copies: how many draws.

    Raises:
        MissingExtraError: scikit-learn isn't installed (the extra `audit`).
    """
    members, others = (one[shares[one].sum(axis=(1, 2)) > 0] for one in (members, others))
    if len(members) < LEAST or min(shares.shape[1:]) < 3:
        return ()
    random = np.random.default_rng([seed, len(members)])
    maps = shares[members].astype(np.float64)
    groups = _grouped(_unit(maps), random)
    count = int(groups.max()) + 1
    if count == 1:
        return ()
    apart = _separations(_unit(maps), groups)
    sizes = np.bincount(groups, minlength=count) / len(groups)
    weights = _weights(apart, sizes)
    pool = np.concatenate([members, others])
    best = _drawn(shares, pool, len(members), copies, random) if len(others) >= LEAST else []
    chances = [(1 + sum(one >= value for one in best)) / (1 + copies) if best else None for value in weights]
    order = sorted(range(count), key=lambda at: rank(chances[at], apart[at], float(sizes[at])))
    found = []
    for number, at in enumerate(order, start=1):
        own = np.flatnonzero(groups == at)
        mean = maps[own].mean(axis=0)
        typical = own[np.argsort(-(_unit(maps[own]) @ mean.ravel()), kind="stable")]
        found.append(Cluster(name, number, members[typical], float(sizes[at]), apart[at], chances[at], mean))
    return tuple(found)


def rank(p: float | None, separation: float, share: float) -> tuple[bool, float]:
    """What groups are sorted by: those beyond chance first, then the small, far and consistent ones."""
    return p is None or p > ALPHA, -separation * (1 - share)


def _weights(apart: Sequence[float], sizes: Array) -> list[float]:
    """Of each group how far it stands out: its separation times the spread of belonging to it, which grows with its size up to a half."""
    return [float(one * np.sqrt(size * (1 - size))) for one, size in zip(apart, sizes, strict=True)]


def _drawn(shares: Array, pool: Array, count: int, copies: int, random: np.random.Generator) -> list[float]:
    """The most outstanding group in each of so many draws of as many maps from all classes."""
    found = []
    for _ in range(copies):
        flat = _unit(shares[random.choice(pool, min(count, _AT_ONCE), replace=False)].astype(np.float64))
        groups = _grouped(flat, random)
        sizes = np.bincount(groups) / len(groups)
        found.append(max(_weights(_separations(flat, groups), sizes)) if len(sizes) > 1 else 0.0)
    return found


def _unit(maps: Array) -> Array:
    """(n, h w) of length 1."""
    flat = maps.reshape(len(maps), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def _grouped(flat: Array, random: np.random.Generator) -> Array:
    """(n,) the number of each map's group, from 0; all 0 where there is one kind only."""
    some = np.arange(len(flat)) if len(flat) <= _AT_ONCE else np.sort(random.choice(len(flat), _AT_ONCE, replace=False))
    groups = _spectral(flat[some] @ flat[some].T)
    if len(some) < len(flat):
        groups = groups[(flat @ flat[some].T).argmax(axis=1)]
    return np.unique(groups, return_inverse=True)[1]


def _spectral(alike: Array) -> Array:
    """Groups of a graph in which each map is joined to its nearest neighbours, as many as the eigengap says."""
    cluster = optional("sklearn.cluster", "audit", "grouping maps")
    n = len(alike)
    near = np.argsort(-alike - 2 * np.eye(n), axis=1, kind="stable")[:, : min(_NEIGHBOURS, n - 1) + 1]
    graph = np.zeros((n, n))
    np.put_along_axis(graph, near, np.take_along_axis(np.clip(alike, 0, None), near, axis=1), axis=1)
    graph = np.maximum(graph, graph.T)
    np.fill_diagonal(graph, 0)
    degree = np.maximum(graph.sum(axis=1), 1e-12)
    scaled = graph / np.sqrt(degree[:, None] * degree[None])
    values, vectors = np.linalg.eigh(scaled)
    largest = values[::-1][: _MOST + 1]
    count = int(np.argmax(largest[:-1] - largest[1:])) + 1
    if count == 1:
        return np.zeros(n, int)
    space = vectors[:, ::-1][:, :count]
    space = space / np.maximum(np.linalg.norm(space, axis=1, keepdims=True), 1e-12)
    found = cluster.KMeans(count, n_init=4, random_state=0).fit_predict(space)
    return np.asarray(found)


def _separations(flat: Array, groups: Array) -> list[float]:
    """Of each group how much more alike its maps are to their own mean than to that of all others."""
    found = []
    count = int(groups.max()) + 1
    for at in range(count if count > 1 else 0):
        own, others = flat[groups == at], flat[groups != at]
        means = [one.mean(axis=0) for one in (own, others)]
        near, far = (own @ (one / np.linalg.norm(one)) for one in means)
        found.append(float((near - far).mean()))
    return found
