"""The page: a microphone in the browser, the words as they are heard, and recordings of one's own words.

Static files without a build step (static/), a WebSocket over the detector (socket.py), recordings (collection.py).
`router` puts them into one application, which server.py mounts.
"""
