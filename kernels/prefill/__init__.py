"""Reading a prompt: the contrast to decode, measured with libraries only."""
