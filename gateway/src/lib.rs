//! Doorman's data plane: proxies `/api` traffic and serves the management API under `/platform`.

pub mod client;
pub mod identity;
pub mod platform;
pub mod problem;
pub mod settings;
pub mod store;
