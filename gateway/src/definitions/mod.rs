//! Where definitions come from: a watch on the cluster, a folder of manifests, the document store; behind one seam.
//!
//! A source publishes its whole state as [`Definitions`] through a `watch` channel, newest wins; objects are shared, so
//! a state costs one pointer per object. Sources only read and sort; whether an object can be served is decided by the
//! snapshot compiler.

use std::collections::BTreeMap;
use std::sync::Arc;

use doorman_crds::revision::Rejection;
use doorman_crds::{DoormanApi, DoormanRole};

pub mod directory;
mod disk;
pub mod documents;
pub mod fields;
pub mod kubernetes;
mod named;
mod owner;
mod secret;
pub mod weights;
pub mod writer;

pub use owner::{Origin, Owner};
pub use secret::{Secret, Secrets};

/// Namespace and name of an object; for a folder, file and position.
pub type ObjectId = (String, String);

/// Everything a gateway is told to serve at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definitions {
    /// APIs by identity.
    pub apis: BTreeMap<ObjectId, Arc<DoormanApi>>,
    /// Of those that wait for a Secret: what they were before, which is served for that moment.
    pub held: BTreeMap<ObjectId, Arc<DoormanApi>>,
    /// Roles by identity.
    pub roles: BTreeMap<ObjectId, Arc<DoormanRole>>,
    /// Secrets that APIs may name.
    pub secrets: Secrets,
    /// The file of each object of a folder, by uid; empty for a cluster.
    pub files: BTreeMap<String, Arc<str>>,
    /// What could not be read as an object at all.
    pub unreadable: Vec<Rejection>,
}
