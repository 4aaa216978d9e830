"""Continue from a pretrained encoder: learn what surrounds a view, under other stains."""
