//! Data that crosses a border of the tailnet: keys, control messages, records and packets.
