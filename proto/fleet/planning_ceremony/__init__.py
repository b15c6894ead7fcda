"""The ceremony engine: its protos, and its client for threads and for asyncio."""
