"""Reading a prompt: how does it contrast with decode? It is measured with libraries only."""
