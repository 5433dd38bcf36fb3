"""A small Hub for tests: the real client talks HTTP to it, on loopback. Start at hub.server.HubServer."""
