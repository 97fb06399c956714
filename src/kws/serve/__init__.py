"""After the last step: a model at work, over REST, gRPC and a page that listens.

In: a model of one file, or the champion of models/ for as long as the server runs. Out: words and probabilities.
Start with server.py; models.py loads and swaps models, protocol.py reads and writes the Open Inference Protocol.
"""
