//! Doorman's operator: turns a `DoormanGateway` object into running gateway pods.

fn main() {}
