"""Every way in and out: the socket's door and connection, the HTTP routes."""
