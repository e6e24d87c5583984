//! The web server on loopback sockets in place of a tailnet node, before backends in this process.

mod bed;
mod forwarding;
mod hostile;
