//! The command line: arguments to settings to a running process.
fn main() {}
