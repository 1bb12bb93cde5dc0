"""Types, array helpers, named random streams, table look-up: what every other folder may import."""
