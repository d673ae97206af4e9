"""The 1st-place solution of the Deepfake Detection Challenge, one small module per step.

Nothing is imported here, so that `import dfdc_lib.geometry` stays instant: import the module that you need.
"""

__version__ = "0.1.0"
