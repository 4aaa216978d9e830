"""Risk models, and the simulated outcomes they are fitted on. Open `fit_risk.py` first."""
