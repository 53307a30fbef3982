"""Reading a prompt: the contrast to decode, through the libraries only."""
