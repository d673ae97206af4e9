"""The 1st-place solution of the Deepfake Detection Challenge. Import the module you need."""

import os

# Otherwise albumentations checks for updates online at every import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
