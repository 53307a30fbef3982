"""Who drives? Everything for a rented hour: doctor, campaign, tuning, self-check."""
