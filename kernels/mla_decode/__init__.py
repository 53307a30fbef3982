"""y[B, N] = x[B, K] W[N, K]^T: the matrix-vector products of a decode step."""
