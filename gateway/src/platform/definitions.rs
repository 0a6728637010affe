//! Where definitions are written, how, and what is answered when one can't be written from here.

use doorman_crds::FieldError;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Platform,
    answer::{Refusal, bad_because},
    wire::Flag,
};
use crate::{
    definitions::{
        Origin, Owner,
        fields::{Members, Misfit},
        weights::weights,
        writer::{Definition, WriteError, Writer, Writing},
    },
    problem::Problem,
    store::Collection,
};

/// A definition that REST can't change is somebody else's, or the cluster's.
const OWNED: &str = "DEF409";
/// The API server is away, or allows nothing.
const AWAY: &str = "DEF503";
/// What was sent would take the API out of service.
const UNSERVABLE: &str = "API015";
/// It is written, and not yet served here.
const NOT_YET: &str = "DEF504";

/// What the definition is called, such as `Role ops`, and why it was not written.
pub(super) fn not_written(what: &str, error: WriteError) -> Refusal {
    let (status, code, message) = match error {
        WriteError::Owned { owner, kind, namespace, name } => {
            let message = format!("{what} is defined by {owner} as {kind} {namespace}/{name}; change it there");
            (StatusCode::CONFLICT, OWNED, message)
        }
        WriteError::Kept(tool) => {
            let message = format!(
                "{what} is kept by {tool}, which would take it back; remove it there, or repeat with {{\"force\": true}}"
            );
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

/// Refuses weights that don't fit the servers, as both will be, of a document of this collection.
pub(super) fn must_weigh(
    (collection, code): (Collection, &'static str),
    stored: &Members,
    given: &Members,
) -> Result<(), Refusal> {
    weights(collection, stored, given).map(drop).map_err(|problem| bad_because(code, problem))
}

/// A definition that is not the platform's to change.
fn owned(what: &str, kind: &str, origin: &Origin) -> Refusal {
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

/// Where a definition is written.
pub(super) enum Place<'a> {
    Documents,
    /// To the object of this name.
    Cluster(&'a Writer, String),
}

/// Where this is written, or why it is not; `origin` is that of the object that defines it, if one does.
pub(super) fn place<'a, K: Definition>(
    platform: &'a Platform,
    what: &str,
    origin: Option<&Origin>,
    new_name: impl FnOnce() -> String,
) -> Result<Place<'a>, Refusal> {
    match (&platform.writing, origin) {
        (Writing::ReadOnly, _) => Err(read_only(K::KINDS)),
        (Writing::Documents, None) => Ok(Place::Documents),
        (Writing::Cluster(writer), None) => Ok(Place::Cluster(writer, new_name())),
        (Writing::Cluster(writer), Some(origin)) if is_ours(writer, origin) => {
            Ok(Place::Cluster(writer, origin.name.to_string()))
        }
        (Writing::Documents | Writing::Cluster(_), Some(origin)) => Err(owned(what, &K::kind(&()), origin)),
    }
}

fn is_ours(writer: &Writer, origin: &Origin) -> bool {
    origin.owner == Owner::Platform && *origin.namespace == *writer.namespace()
}

/// Why a definition was not written to the cluster.
pub(super) enum Unwritten {
    Answer(Refusal),
    Error(WriteError),
}

impl From<WriteError> for Unwritten {
    fn from(error: WriteError) -> Self {
        Self::Error(error)
    }
}

impl Unwritten {
    fn refusal(self, what: &str) -> Refusal {
        match self {
            Self::Answer(refusal) => refusal,
            Self::Error(error) => not_written(what, error),
        }
    }
}

/// Writes what `make` makes of an object as it is. `None`: it is left as it is.
pub(super) async fn write_object<K: Definition>(
    writer: &Writer,
    object: &str,
    what: &str,
    make: impl Fn(Option<&K::Spec>) -> Result<Option<K::Spec>, Refusal>,
) -> Result<Option<Origin>, Refusal> {
    let make = |found: Option<&K::Spec>| make(found).map_err(Unwritten::Answer);
    writer.write::<K, _>(object, what, make).await.map_err(|unwritten| unwritten.refusal(what))
}

/// Would [`write_object`] be refused?
pub(super) async fn check_object<K: Definition>(
    writer: &Writer,
    object: &str,
    what: &str,
    make: impl Fn(Option<&K::Spec>) -> Result<Option<K::Spec>, Refusal>,
) -> Result<(), Refusal> {
    let make = |found: Option<&K::Spec>| make(found).map_err(Unwritten::Answer);
    writer.check::<K, _>(object, what, make).await.map_err(|unwritten| unwritten.refusal(what))
}

/// An object has no place for this.
pub(super) fn unfit(misfit: &Misfit) -> Refusal {
    // A name in it may be of any length.
    let message: String = misfit.to_string().chars().take(255).collect();
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", message).into()
}

/// Refuses what would take an API out of service. What had done so before stands in nobody's way.
pub(super) fn must_be_servable(
    before: impl FnOnce() -> Vec<FieldError>,
    after: Vec<FieldError>,
) -> Result<(), Refusal> {
    if after.is_empty() {
        return Ok(());
    }
    let before = before();
    // Another member of a list may have moved it.
    let is_new = |problem: &FieldError| before.iter().all(|before| before.message != problem.message);
    after.into_iter().find(is_new).map_or(Ok(()), |problem| Err(bad_because(UNSERVABLE, problem.to_string())))
}

/// Refuses what an object has no place for.
pub(super) fn must_fit(misfits: &[Misfit]) -> Result<(), Refusal> {
    misfits.first().map_or(Ok(()), |misfit| Err(unfit(misfit)))
}

/// How to take an object over.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Adoption {
    /// Also from a tool that may take it back.
    pub(super) force: Option<Flag>,
}

/// Takes the object that defines this over from somebody else; `served` tells its origin as it is served.
pub(super) async fn adopt<K: Definition>(
    platform: &Platform,
    what: &str,
    adoption: &Adoption,
    served: impl Fn() -> Option<Origin>,
) -> Result<(), Refusal> {
    let (writer, origin) = object_of::<K>(platform, what, served())?;
    if *origin.namespace != *writer.namespace() {
        return Err(owned(what, &K::kind(&()), &origin));
    }
    let is_forced = adoption.force.is_some_and(|flag| flag.0);
    let adopted = writer.adopt::<K>(&origin.name, is_forced).await.map_err(|error| not_written(what, error))?;
    let is_served = || served().is_some_and(|now| now.uid != adopted.uid || now.owner == Owner::Platform);
    until_served(writer, what, is_served).await
}

/// Gives the object that defines this away.
pub(super) async fn release<K: Definition>(
    platform: &Platform,
    what: &str,
    served: impl Fn() -> Option<Origin>,
) -> Result<(), Refusal> {
    let (writer, origin) = object_of::<K>(platform, what, served())?;
    if !is_ours(writer, &origin) {
        return Err(owned(what, &K::kind(&()), &origin));
    }
    let released = writer.release::<K>(&origin.name).await.map_err(|error| not_written(what, error))?;
    let is_served = || served().is_none_or(|now| now.uid != released.uid || now.owner != Owner::Platform);
    until_served(writer, what, is_served).await
}

/// The object of the cluster that defines this; only there, ownership goes from hand to hand.
fn object_of<'a, K: Definition>(
    platform: &'a Platform,
    what: &str,
    origin: Option<Origin>,
) -> Result<(&'a Writer, Origin), Refusal> {
    let refused = |message| Err(Problem::new(StatusCode::CONFLICT, OWNED, message).into());
    match (&platform.writing, origin) {
        (Writing::Documents, _) => refused(format!("{what} can't change hands: this gateway runs without a cluster")),
        (Writing::ReadOnly, _) => Err(read_only(K::KINDS)),
        (Writing::Cluster(_), None) => refused(format!("{what} is stored, and no object of the cluster")),
        (Writing::Cluster(writer), Some(origin)) => Ok((writer, origin)),
    }
}

/// Waits until this holds of what this process serves, so that whoever asks next sees what was written.
pub(super) async fn until_served(writer: &Writer, what: &str, holds: impl Fn() -> bool) -> Result<(), Refusal> {
    if writer.until_served(holds).await {
        return Ok(());
    }
    let message = format!("{what} is stored in the cluster, but not yet served here; its conditions tell more");
    Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, NOT_YET, message).into())
}
