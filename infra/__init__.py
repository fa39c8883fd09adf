"""What both halves stand on: records, settings, the store, the hand-off queue, the model clients, telemetry."""
