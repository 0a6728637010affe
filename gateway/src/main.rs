//! Doorman's data plane: the process.

fn main() {}
