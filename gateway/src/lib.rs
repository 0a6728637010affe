//! Doorman's data plane: proxies `/api` traffic and serves the management API under `/platform`.

pub mod admin;
pub mod client;
pub mod definitions;
pub mod identity;
pub mod listen;
#[cfg(test)]
mod pages;
pub mod pipeline;
pub mod platform;
pub mod problem;
pub mod protocols;
pub mod reload;
pub mod request;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod store;
pub mod telemetry;
pub mod upstream;
