"""Slide models: patterns, grades, attention. Open `fit_slide.py` first."""
