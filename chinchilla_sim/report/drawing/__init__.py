"""Figures: matplotlib SVG and PNG, and the Chrome trace."""
