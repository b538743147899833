"""Backbone, adapters, heads and the packed forward pass.

Importing this package silences the libraries' load-time messages, but not their errors.
"""

import logging
import warnings

for _library in ("bitsandbytes", "transformers", "peft", "datasets"):
    logging.getLogger(_library).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
