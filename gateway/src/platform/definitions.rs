//! What is answered when a definition can't be written from here.

use http::StatusCode;

use super::answer::Refusal;
use crate::{
    definitions::{
        Origin, Owner,
        writer::{WriteError, Writer, Writing},
    },
    problem::Problem,
};

/// A definition that REST can't change is somebody else's, or the cluster's.
const OWNED: &str = "DEF409";
/// The API server is away, or allows nothing.
const AWAY: &str = "DEF503";
/// It is written, and not yet served here.
const NOT_YET: &str = "DEF504";

/// What the definition is called, such as `Role ops`, and why it was not written.
pub(super) fn not_written(what: &str, error: WriteError) -> Refusal {
    let (status, code, message) = match error {
        WriteError::Owned { owner, kind, namespace, name } => {
            let message = format!("{what} is defined by {owner} as {kind} {namespace}/{name}; change it there");
            (StatusCode::CONFLICT, OWNED, message)
        }
        WriteError::Refused(reason) => (StatusCode::UNPROCESSABLE_ENTITY, "VAL001", reason),
        WriteError::Changed => {
            (StatusCode::CONFLICT, OWNED, format!("{what} is being changed by others at the same time; try again"))
        }
        WriteError::Forbidden(_) => {
            let message = "This gateway may not write definitions; its log tells what is missing".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, AWAY, message)
        }
        WriteError::Away(_) => {
            let message = format!("{what} can't be written now: the Kubernetes API server does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, AWAY, message)
        }
    };
    Problem::new(status, code, message).into()
}

/// A definition that is not the platform's to change.
pub(super) fn owned(what: &str, kind: &str, origin: &Origin) -> Refusal {
    let Origin { owner, namespace, name, .. } = origin;
    let message = match owner {
        Owner::File(_) => format!("{what} is defined by {owner}; change it there"),
        _ => format!("{what} is defined by {owner} as {kind} {namespace}/{name}; change it there"),
    };
    Problem::new(StatusCode::CONFLICT, OWNED, message).into()
}

/// The platform API may write none.
pub(super) fn read_only(kinds: &str) -> Refusal {
    let message = format!("{kinds} of this gateway are defined in the cluster (spec.platform.definitions is ReadOnly)");
    Problem::new(StatusCode::CONFLICT, OWNED, message).into()
}

/// Refuses to store what only a gateway without a cluster serves from its store.
pub(super) fn must_be_stored_here(writing: &Writing, kinds: &str) -> Result<(), Refusal> {
    if matches!(writing, Writing::Documents) {
        return Ok(());
    }
    let message = format!("{kinds} of this gateway are defined in the cluster; change the DoormanApi objects there");
    Err(Problem::new(StatusCode::CONFLICT, OWNED, message).into())
}

/// An API that a manifest defines.
pub(super) fn of_manifest(name: &str, version: &str) -> Refusal {
    let message = format!("API {name}/{version} is defined by a manifest; change it there");
    Problem::new(StatusCode::CONFLICT, OWNED, message).into()
}

/// Waits until this holds of what this process serves, so that whoever asks next sees what was written.
pub(super) async fn until_served(writer: &Writer, what: &str, holds: impl Fn() -> bool) -> Result<(), Refusal> {
    if writer.until_served(holds).await {
        return Ok(());
    }
    let message = format!("{what} is stored in the cluster, but not yet served here; its conditions tell more");
    Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, NOT_YET, message).into())
}
