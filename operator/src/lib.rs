//! Doorman's operator: turns a `DoormanGateway` object into running gateway pods and tells the truth about them and
//! about the objects they serve.
//!
//! [`watch`] turns the cluster into events, [`fleet`] what pods say they serve; [`world`] takes events in and plans
//! writes, without any I/O; [`render`] says what a gateway consists of; [`apply`] writes.

pub mod apply;
pub mod fleet;
pub mod lease;
pub mod metrics;
pub mod operator;
#[cfg(test)]
mod pages;
pub mod render;
pub mod watch;
pub mod world;
