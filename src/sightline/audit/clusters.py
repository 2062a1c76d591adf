"""Groups of alike maps within a class: a model that has two ways to know a class shows two kinds of maps.

Reference:
    Lapuschkin et al., Unmasking Clever Hans predictors and assessing what machines really learn, Nature Communications 10, 2019
    (SpRAy): spectral clustering of maps on a graph of nearest neighbours, with the eigengap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline._optional import optional

Array = np.ndarray[Any, np.dtype[Any]]
LEAST = 20  # maps of a class, below which no groups are looked for
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
        p: how often the best separated group of as many maps, each moved to a random place, is at least as far apart.
        mean: (h, w) mean of its maps' shares.
    """

    of: str
    number: int
    members: Array
    share: float
    separation: float
    p: float
    mean: Array


def clusters_of(
    name: str, shares: Array, members: Array, *, seed: int = 0, copies: int = _COPIES
) -> tuple[Cluster, ...]:
    """The groups of a class, small, far and consistent ones first; none where all maps are of one kind.

    Each is compared with a null in which every map keeps its form and is moved around the (closed) grid by a random step: the grouping
    is made anew, and its best separation counts, so that having looked for groups costs nothing.

    Args:
        name: the class.
        shares: (N, h, w) of all maps.
        members: (n,) indices of the class's maps.
        seed: of the null, and of which maps make the graph.
        copies: of the null.

    Raises:
        MissingExtraError: scikit-learn isn't installed (the extra `audit`).
    """
    members = members[shares[members].sum(axis=(1, 2)) > 0]
    if len(members) < LEAST or min(shares.shape[1:]) < 3:
        return ()
    random = np.random.default_rng([seed, len(members)])
    maps = shares[members].astype(np.float64)
    groups = _grouped(_unit(maps), random)
    count = int(groups.max()) + 1
    if count == 1:
        return ()
    apart = _separations(_unit(maps), groups)
    best = [
        max(_separations(moved, _grouped(moved, random)), default=-1.0)
        for moved in (_unit(_moved(maps, random)) for _ in range(copies))
    ]
    chances = [(1 + sum(one >= value for one in best)) / (1 + copies) for value in apart]
    sizes = np.bincount(groups, minlength=count) / len(groups)
    order = sorted(range(count), key=lambda at: (chances[at], -apart[at] * (1 - sizes[at])))
    found = []
    for number, at in enumerate(order, start=1):
        own = np.flatnonzero(groups == at)
        mean = maps[own].mean(axis=0)
        typical = own[np.argsort(-(_unit(maps[own]) @ mean.ravel()), kind="stable")]
        found.append(Cluster(name, number, members[typical], float(sizes[at]), apart[at], chances[at], mean))
    return tuple(found)


def _unit(maps: Array) -> Array:
    """(n, h w) of length 1."""
    flat = maps.reshape(len(maps), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def _moved(maps: Array, random: np.random.Generator) -> Array:
    """Each map moved around the closed grid by a step of its own."""
    h, w = maps.shape[1:]
    down, right = random.integers(h, size=len(maps)), random.integers(w, size=len(maps))
    rows = (np.arange(h)[None] + down[:, None]) % h
    columns = (np.arange(w)[None] + right[:, None]) % w
    return np.asarray(maps[np.arange(len(maps))[:, None, None], rows[:, :, None], columns[:, None, :]])


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
