//! Tailnet nodes of one process: control connection, relay connections, sockets.
