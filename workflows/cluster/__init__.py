"""Ray and its nodes: connecting, starting workers, stopping. The only place with Ray Train's internals."""
