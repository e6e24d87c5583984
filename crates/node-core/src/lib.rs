//! One tailnet node as a state machine, without clock, randomness or sockets.
