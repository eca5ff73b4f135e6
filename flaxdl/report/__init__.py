"""The report of a run, or of several: predictions, scores, charts and the HTML page.

Here belongs what a section of the report shows and how it looks.
"""
