"""The realtime container: it holds the WebSockets, runs the turns and journals every event."""
