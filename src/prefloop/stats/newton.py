"""Newton's method on many small concave functions at once.

A bootstrap fits the same model to thousands of resamples. ``scipy.optimize`` takes one function at
a time, which is some hundred times slower.

Shapes: R functions of F parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STEPS = 100
_LONGEST = 2.0  # a longer step overshoots where the curve is flat
_TOLERANCE = 1e-10


def maxima(derivatives: Callable[[Array], tuple[Array, Array]], start_RF: Array) -> Array:
    """Where R concave functions are largest, [R, F].

    ``derivatives`` takes the parameters [R, F] and returns the gradients [R, F] and the negative
    Hessians [R, F, F], which must be invertible. No parameter moves by more than 2 in a step.
    """
    at_RF = start_RF
    for _ in range(_STEPS):
        slope_RF, curve_RFF = derivatives(at_RF)
        step_RF = np.linalg.solve(curve_RFF, slope_RF[..., None])[..., 0]
        at_RF = at_RF + np.clip(step_RF, -_LONGEST, _LONGEST)
        if np.abs(step_RF).max() < _TOLERANCE:
            break
    return at_RF
