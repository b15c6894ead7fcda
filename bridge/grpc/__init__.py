"""The gRPC server: requests from clients and from other workers."""
