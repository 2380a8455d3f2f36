"""The alignment of images on a GPU; imported only when one is asked for.

Arrays on the device are of cupy (`accelerator.py`); their types are not known to mypy.
"""
