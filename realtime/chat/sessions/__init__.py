"""The live sessions: the registry, and each with its turn, its pace and its sockets' outboxes."""
