"""Encoders: networks, published weights, embeddings of slides. Open `encoder.py` first."""
