"""How to show it: tables, figures, traces, and one page.

what is told       study: all that is known about one scenario; verdict: the answer in one sentence; remarks: what a plan breaks
tables/            everything that is told, for terminals and pages alike, made of `table.py`
drawing/           figures that share a canvas, and the Chrome trace; sketch: a step in plain text
pages/             the HTML page and its sections, Markdown, CSV, JSON, the summary of a scenario
alike              ranks that do the same are told once
"""
