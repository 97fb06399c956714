"""Keyword spotting: from recordings of spoken command words to a judged, deployable recognizer."""
