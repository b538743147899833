"""Exact similarity: the cosine of the query with every candidate, in one matrix product."""

import json
from collections.abc import Sequence

import numpy as np
from argilla_server.errors.future import UnprocessableEntityError


def similarities(
    rows: Sequence[tuple[str, str]], query: Sequence[float]
) -> list[tuple[str, float]]:
    """Pairs of record id and `(1 + cosine) / 2`, the most similar first, from rows of record id and
    JSON vector.

    Vectors of another length, with values that are not finite, or all zero have no cosine and are
    left out. Raises UnprocessableEntityError (422) when the query itself is such a vector.
    """
    query_H = np.asarray(query, dtype=np.float64)
    norm = float(np.linalg.norm(query_H))
    if query_H.ndim != 1 or not np.isfinite(norm) or norm == 0:
        raise UnprocessableEntityError(
            "the vector to compare with must be finite and not all zeros"
        )
    ids, vectors = [], []
    for record_id, text in rows:
        vector = json.loads(text)
        if len(vector) == len(query_H):
            ids.append(record_id)
            vectors.append(vector)
    if rows and not ids:
        raise UnprocessableEntityError(
            f"the vector to compare with has {len(query_H)} dimensions, those of the records have"
            f" {len(json.loads(rows[0][1]))}"
        )
    if not ids:
        return []
    vectors_NH = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        scores_N = (1 + (vectors_NH @ query_H) / (np.linalg.norm(vectors_NH, axis=1) * norm)) / 2
    order = np.argsort(-scores_N, kind="stable")
    return [(ids[n], float(np.clip(scores_N[n], 0, 1))) for n in order if np.isfinite(scores_N[n])]
