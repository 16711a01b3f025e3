"""The ranking metrics straight from their definitions: explicit loops, O(n^2), nothing shared with
the engine. Ties are settled by the definition too: D averaged within equal scores, rank weights
averaged within equal scores, a cut that treats a tied block in part."""

from __future__ import annotations

import math


def blocks(score: list[float]) -> list[list[int]]:
    """Row numbers of each distinct score, the highest score first."""
    return [[i for i, s in enumerate(score) if s == level] for level in sorted(set(score))[::-1]]


def top_sum(score: list[float], D: list[float], q: float) -> float:
    """Sum of D over the top q of the rows; a block at the cut gives what fits."""
    left, total = q * len(D), 0.0
    for block in blocks(score):
        share = min(1.0, max(0.0, left / len(block)))
        total += share * sum(D[i] for i in block)
        left -= len(block)
    return total


def toc(score: list[float], D: list[float], q: float) -> float:
    return top_sum(score, D, q) / (q * len(D)) - sum(D) / len(D)


def autoc(score: list[float], D: list[float]) -> float:
    n = len(D)
    return sum(toc(score, D, j / n) for j in range(1, n + 1)) / n


def qini(score: list[float], D: list[float]) -> float:
    n = len(D)
    return sum(j / n * toc(score, D, j / n) for j in range(1, n + 1)) / n


def _averaged(values: list[float], level: list[list[int]]) -> list[float]:
    """`values` by rank, averaged within blocks, then handed to the rows of the blocks."""
    out = [0.0] * len(values)
    rank = 0
    for block in level:
        mean = sum(values[rank : rank + len(block)]) / len(block)
        for i in block:
            out[i] = mean
        rank += len(block)
    return out


def area_psi(score: list[float], D: list[float], which: str) -> list[float]:
    """Influence values of AUTOC or QINI by the formulas of the field, with D centred."""
    n = len(D)
    level = blocks(score)
    mean = sum(D) / n
    D = [d - mean for d in D]
    tied = [sum(D[i] for i in block) / len(block) for block in level for _ in block]
    weights, later = [], []
    for j in range(1, n + 1):
        if which == "autoc":
            weights.append(sum(1 / m for m in range(j, n + 1)) - 1)
            moved = sum(tied[m - 1] / (m / n) for m in range(j + 1, n + 1))
            later.append((moved + tied[j - 1] / (j / n) / 2) / n)
        else:
            weights.append((n - 2 * j + 1) / (2 * n))
            moved = sum(tied[m - 1] for m in range(j + 1, n + 1)) + tied[j - 1] / 2
            later.append(moved / n - sum(m / n * tied[m - 1] for m in range(1, n + 1)) / n)
    value = autoc(score, D) if which == "autoc" else qini(score, D)
    w, rest = _averaged(weights, level), _averaged(later, level)
    return [w[i] * D[i] - value - rest[i] for i in range(n)]


def uplift_psi(score: list[float], D: list[float], q: float) -> list[float]:
    """Influence values of the mean of D in the top q."""
    n = len(D)
    value = top_sum(score, D, q) / (q * n)
    low, high = max(q - 0.05, 0.0), min(q + 0.05, 1.0)
    local = (top_sum(score, D, high) - top_sum(score, D, low)) / ((high - low) * n)
    inside = [0.0] * n
    left = q * n
    for block in blocks(score):
        for i in block:
            inside[i] = min(1.0, max(0.0, left / len(block)))
        left -= len(block)
    return [inside[i] / q * (D[i] - local) + local - value for i in range(n)]


def clustered_error(psi: list[float], cluster: list[int]) -> float:
    groups = sorted(set(cluster))
    sums = [sum(p for p, c in zip(psi, cluster, strict=True) if c == g) for g in groups]
    variance = len(groups) / (len(groups) - 1) * sum(s * s for s in sums) / len(psi) ** 2
    return math.sqrt(variance)
