//! What the tests, the demo and the benchmark share: a gateway to test, an upstream to call, a load to call it with.
//!
//! - [`upstream`]: a small HTTP/1.1 and h2c server whose answers are known in advance, as the binary `sample-upstream`;
//! - [`certificates`]: authorities and certificates for TLS;
//! - [`gateway`]: a gateway process with a folder of manifests of its own;
//! - [`load`]: a fixed-rate load generator that counts every request without a correct answer, as the binary `loadgen`;
//! - [`mongo`]: where the stand-in for MongoDB is;
//! - [`raw`]: servers that write bytes as a test says;
//! - [`scripted`]: a server that answers what a test says;
//! - [`stores`]: Redis and that stand-in beside a gateway.
//!
//! Both are libraries first, so that a test can run them inside itself, beside whatever it is testing.

pub mod certificates;
pub mod gateway;
pub mod load;
pub mod mongo;
pub mod raw;
pub mod scripted;
pub mod stores;
pub mod upstream;
