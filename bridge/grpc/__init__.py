"""The gRPC front: requests from clients, answers from the fold and the tables."""
