"""DINO: student and EMA teacher (Caron et al. 2021, Oquab et al. 2023)."""
