//! Conditions as Kubernetes means them: one writer, times that move only when the status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Object is valid and taken up.
pub const ACCEPTED: &str = "Accepted";
/// Everything the object refers to exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Every ready pod of the selected gateways serves this generation.
pub const PROGRAMMED: &str = "Programmed";
/// Summary for tools (kstatus): the object is fully reconciled and working.
pub const READY: &str = "Ready";
/// Enough pods of the fleet are ready.
pub const AVAILABLE: &str = "Available";
/// The fleet is being rolled.
pub const PROGRESSING: &str = "Progressing";
/// All key material exists.
pub const KEYS_READY: &str = "KeysReady";
/// The stores the fleet is configured for answer.
pub const STORAGE_REACHABLE: &str = "StorageReachable";

/// Value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It can't be told.
    Unknown,
}

impl Status {
    /// The word used on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Builds a condition. `now` becomes its transition time unless [`merge`] finds an older one that still holds.
pub fn condition(
    type_: &str,
    status: Status,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now.clone(),
    }
}

/// Keeps the transition time of every condition whose status did not change; order and set are those of `wanted`.
pub fn merge(old: &[Condition], wanted: Vec<Condition>) -> Vec<Condition> {
    wanted
        .into_iter()
        .map(|mut new| {
            if let Some(previous) = old.iter().find(|c| c.type_ == new.type_ && c.status == new.status) {
                new.last_transition_time = previous.last_transition_time.clone();
            }
            new
        })
        .collect()
}

/// Finds a condition by type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether a condition of this type is present and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == Status::True.as_str())
}
