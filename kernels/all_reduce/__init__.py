"""All-reduce: the sum of what every rank holds, twice in each layer of a model that is split over ranks."""
