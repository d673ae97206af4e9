"""The 1st-place solution of the Deepfake Detection Challenge: import the module that you need."""

import os

# Albumentations would ask the package index for news whenever it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
