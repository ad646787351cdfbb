"""Redis as it is found in the world: clusters, sentinels, TLS and users of few rights, started for real on loopback."""
