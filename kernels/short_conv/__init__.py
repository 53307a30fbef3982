"""One token through the short convolution in front of a state."""
