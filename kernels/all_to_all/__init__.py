"""All-to-all: rows that ranks send to each other, twice in each layer whose experts are split over ranks."""
