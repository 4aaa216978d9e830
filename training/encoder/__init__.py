"""Encoders: the network, embeddings of slides, the probe. Open `encoder.py` first."""
