//! The three Doorman kinds and everything gateway and operator must compute alike.
//!
//! In: objects as Kubernetes stores them ([`DoormanApi`], [`DoormanRole`], [`DoormanGateway`]).
//! Out: typed domain values ([`api::parse`]), field errors a person can act on ([`FieldError`]), which objects a
//! gateway takes ([`selection`]), and the revision both sides compare ([`revision`]).
//!
//! This crate does no I/O and knows neither HTTP servers nor the Kubernetes client; what it says is the same in the
//! operator that writes status and in the gateway pod that serves, so status can't disagree with traffic.

pub mod api;
pub mod conditions;
pub mod gateway;
pub mod manifests;
pub mod networks;
#[cfg(test)]
mod pages;
pub mod path;
pub mod pauses;
pub mod revision;
pub mod role;
pub mod selection;
pub mod verdict;

pub use api::{DoormanApi, DoormanApiSpec, DoormanApiStatus};
pub use gateway::{DoormanGateway, DoormanGatewaySpec, DoormanGatewayStatus};
pub use role::{DoormanRole, DoormanRoleSpec, DoormanRoleStatus};

/// API group of all three kinds.
pub const GROUP: &str = "doorman.dev";
/// Served and stored version of all three kinds.
pub const VERSION: &str = "v1alpha1";

/// Leaves the description of a type out of its schema: where the type is optional it would take the place of what the field
/// says of itself, and of what holds without it.
pub(crate) fn undescribed(schema: &mut schemars::Schema) {
    schema.remove("description");
}

/// One thing wrong with an object: where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field from the object's root, e.g. `spec.endpoints[3].uri`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// Which class of problem this is.
    pub reason: Reason,
}

/// Why an object is not accepted; the `reason` of its `Accepted` or `ResolvedRefs` condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    /// A value that can't mean anything.
    Invalid,
    /// A value that means something this version does not do; serving the object without it would be a lie.
    UnsupportedValue,
    /// An older object already claims the same name and version.
    Conflict,
    /// A referenced object does not exist.
    RefNotFound,
    /// A Secret it names does not exist.
    SecretNotFound,
    /// A Secret it names may not be used by it.
    RefNotPermitted,
    /// A Secret it names holds something else than what is needed.
    InvalidSecret,
    /// A Secret it names could not be read yet.
    SecretNotRead,
}

impl Reason {
    /// The word used in conditions, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::Conflict => "Conflict",
            Self::RefNotFound => "RefNotFound",
            Self::SecretNotFound => "SecretNotFound",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::InvalidSecret => "InvalidSecret",
            Self::SecretNotRead => "SecretNotRead",
        }
    }

    /// Is the object itself fine, and something it refers to not?
    pub const fn is_of_reference(self) -> bool {
        !matches!(self, Self::Invalid | Self::UnsupportedValue | Self::Conflict)
    }
}

impl FieldError {
    /// A value that can't mean anything.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::Invalid }
    }

    /// The name of something that does not exist.
    pub fn missing(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::RefNotFound }
    }

    /// A Secret that holds something else than what is needed.
    pub fn invalid_secret(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::InvalidSecret }
    }

    /// A value this version does not act on.
    pub fn unsupported(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::UnsupportedValue }
    }
}
