"""HTML reports for one or more runs: predictions, scores, charts and the rendered page."""
