"""What a TPU will make of a recipe, known before one is rented.

The recipe's own train and evaluation steps (`program.py`), for batches of the right shapes and no
data (`stand_in.py`), go through the real TPU compiler (`compiler.py`) on a machine without a TPU.
`findings.py` reads in its program what does not belong there. The compiler lives in an environment
of its own (`environment.py`), where `__main__.py` runs; `scripts/tpu_preflight.py` makes it, asks,
and prints the answers (`report.py`).
"""
