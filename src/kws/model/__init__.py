"""The network and its file: what every later step loads, and what is deployed.

In: features or waveforms. Out: scores and probabilities; .pth and .onnx files.
Start with network.py; bundle.py and onnx.py are the two file formats, versions.py the published versions.
"""
