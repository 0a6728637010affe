//! Whether a gateway serves an object it takes, in the words that the status of the object, the gateway's log and the
//! answer to a call share.

use std::collections::BTreeSet;

use crate::api::ApiKey;
use crate::{FieldError, Reason};

/// Why an object is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The class of problem.
    pub reason: Reason,
    /// Names the field or the other object, and what to do.
    pub message: String,
}

/// Of an API: `winner` is the older object with the same name and version, if there is one; `errors` are those of
/// [`crate::api::parse`]; `roles` the ones it names, of which `is_role` knows those the gateway takes; `secrets` what is
/// wrong with the Secrets it names.
///
/// # Errors
/// The first that applies, in this order: conflict, invalid, missing role, Secrets.
pub fn of_api<'a>(
    key: &ApiKey,
    winner: Option<&str>,
    errors: &[FieldError],
    roles: impl IntoIterator<Item = &'a str>,
    is_role: impl Fn(&str) -> bool,
    secrets: &[FieldError],
) -> Result<(), Refusal> {
    if let Some(winner) = winner {
        let message = format!("{key} is already defined by the older {winner}; rename or delete one");
        return Err(Refusal { reason: Reason::Conflict, message });
    }
    all_of(errors)?;
    match roles.into_iter().find(|role| !is_role(role)) {
        None => all_of(secrets),
        Some(role) => {
            let message = format!("spec.access.roles: no DoormanRole is named `{role}`");
            Err(Refusal { reason: Reason::RefNotFound, message })
        }
    }
}

/// Of a role: `errors` are those of [`crate::role::validate`].
///
/// # Errors
/// The first that applies, in this order: invalid, conflict.
pub fn of_role(name: &str, winner: Option<&str>, errors: &[FieldError]) -> Result<(), Refusal> {
    all_of(errors)?;
    match winner {
        None => Ok(()),
        Some(winner) => {
            let message = format!("the older DoormanRole {winner} is already named `{name}`; rename or delete one");
            Err(Refusal { reason: Reason::Conflict, message })
        }
    }
}

/// # Errors
/// All errors in one message, under the reason of the first.
pub fn all_of(errors: &[FieldError]) -> Result<(), Refusal> {
    let Some(first) = errors.first() else { return Ok(()) };
    let message = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(Refusal { reason: first.reason, message })
}

/// The names roles may be referred to by without any DoormanRole.
pub fn built_in_roles() -> BTreeSet<String> {
    BTreeSet::from(["admin".to_owned()])
}
