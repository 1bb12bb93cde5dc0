"""Types, array helpers, named random streams, table look-up, flags: what every other folder may import."""
