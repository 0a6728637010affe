//! What differs between protocols: how a call is addressed, made into an upstream request, and answered.

pub mod rest;
