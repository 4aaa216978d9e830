"""What encoders know of labelled tissue, side by side. Open `probe.py` first."""
