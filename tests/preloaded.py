"""The last that the server of forks loads: what every run would otherwise do again.

A run reads two hundred files of prefloop for the keys of its stages, two seconds of CPU. Hashes
alone are kept: no stage is imported, so what a forked process imports is its own.
"""

import gc

from prefloop.pipeline import code

for module in code.closure(
    name for name in code._sources() if name.startswith("prefloop.pipeline.stages.")
):
    code._hash(module)

# Garbage collectors of the forks look through what they have made, and not through the libraries:
# that would copy every page of them.
gc.collect()
gc.freeze()
