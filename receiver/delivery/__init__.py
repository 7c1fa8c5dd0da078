"""What delivers: events are routed to sinks, and sinks are called, paused and probed here."""
