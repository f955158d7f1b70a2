"""A whole answer: the HTML page, Markdown, CSV, JSON, the summary of a scenario."""
