"""What drives the machines: loops and threads that carry messages, events and time to them."""
