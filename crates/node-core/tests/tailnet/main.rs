//! Whole nodes in a tailnet of memory and virtual time.

mod net;
mod node;
mod tcp;
