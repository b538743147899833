"""Backbone, adapters, heads and the packed forward. Importing it silences the libraries' load-time
chatter, not their errors.
"""

import logging
import warnings

for _library in ("bitsandbytes", "transformers", "peft", "datasets"):
    logging.getLogger(_library).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
