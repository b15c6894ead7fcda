"""The Ray executor's protos."""
