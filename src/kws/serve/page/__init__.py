"""The page: listens to a microphone in the browser, shows detected words, and collects recordings of new words.

Static files without a build step (static/), a WebSocket for the detector (socket.py), recordings (collection.py).
`router` combines their routes, which server.py includes in its application.
"""
