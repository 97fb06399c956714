"""The third step: trains a model on the tensors.

In: a tensors folder and a preset. Out: runs/<timestamp>-<run id>/ with best.pth, metrics and TensorBoard.
Start with step.py, which launches, and trainer.py, which trains.
"""
