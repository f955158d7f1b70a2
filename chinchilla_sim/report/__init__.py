"""How to show it: tables, figures, traces, and one page."""
