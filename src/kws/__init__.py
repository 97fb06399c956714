"""Keyword spotting: from recordings of spoken command words to an evaluated, deployable recognizer."""
