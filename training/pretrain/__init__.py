"""Self-supervised training of encoders. Open `pretrain.py` first."""
