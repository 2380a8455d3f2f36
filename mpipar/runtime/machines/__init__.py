"""The runtime's decisions as pure state machines: messages and seconds in, messages out."""
