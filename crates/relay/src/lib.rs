//! DERP relay and STUN server: a command-emitting machine and its shell.
