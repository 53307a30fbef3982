"""Top-k: the k largest of many scores, as sparse attention, routers and samplers pick them."""
