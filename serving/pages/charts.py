"""Figures as SVG, drawn at the server: no script, no colour that words do not say as well."""
