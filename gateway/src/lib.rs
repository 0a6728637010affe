//! Doorman's data plane: proxies `/api` traffic and serves the management API under `/platform`.

pub mod accounting;
pub mod admin;
pub mod client;
mod clock;
pub mod crypt;
pub mod definitions;
pub mod discovery;
pub mod dump;
pub mod folder;
pub mod identity;
pub mod listen;
pub mod networks;
#[cfg(test)]
mod pages;
pub mod persistence;
pub mod pipeline;
pub mod platform;
pub mod problem;
pub mod protocols;
pub mod reload;
pub mod request;
pub mod routings;
pub mod security;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod store;
pub mod telemetry;
pub mod transform;
pub mod upstream;
pub mod validation;
