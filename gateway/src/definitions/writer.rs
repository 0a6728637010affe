//! Definitions that the platform API writes: through the API server, by server-side apply, under one field manager.
//!
//! In: how an object should be, given how it is. Out: which state of it the API server has taken. What always holds:
//! nothing is forced; an object that is not the platform's own (see [`Owner`]) is left as it is; a change is made on
//! the state that was looked at, or not at all; no answer of the API server is waited for longer than [`PATIENCE`].

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::time::Duration;

use doorman_crds::DoormanRole;
use doorman_crds::gateway::GatewayRef;
use doorman_crds::selection::Selection;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;

use super::owner::{MANAGED_BY, Origin, Owner, PLATFORM};

/// Longest wait for one answer of the API server.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait until this process serves what was written.
pub const SERVED: Duration = Duration::from_secs(5);
/// How often a change is made anew because somebody else was faster; each status of the operator counts as one.
const TRIES: usize = 5;
/// Longest name of an object; it fits where a DNS label must.
const MAX_NAME: usize = 63;

/// Where the platform API writes definitions.
#[derive(Clone, Debug)]
pub enum Writing {
    /// To the document store: there is no cluster.
    Documents,
    /// Nowhere: they are the cluster's.
    ReadOnly,
    /// To the cluster.
    Cluster(Writer),
}

/// A kind that the platform API may write.
pub trait Definition:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
    /// The gateways that take the object; `None`: all.
    fn gateway_refs(&self) -> Option<&[GatewayRef]>;
}

impl Definition for DoormanRole {
    fn gateway_refs(&self) -> Option<&[GatewayRef]> {
        self.spec.gateway_refs.as_deref()
    }
}

/// Why nothing was written.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WriteError {
    /// The object is somebody else's.
    #[error("{kind} {namespace}/{name} is that of {owner}")]
    Owned {
        /// Whose.
        owner: String,
        /// Its kind.
        kind: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server finds fault with it, in these words.
    #[error("the API server refuses it: {0}")]
    Refused(String),
    /// Others kept changing it.
    #[error("it was changed by others at the same time")]
    Changed,
    /// The account of the gateway may not.
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    /// The API server gives no answer, or none that helps.
    #[error("the API server is away: {0}")]
    Away(String),
}

/// The cluster, for writing definitions of one gateway. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    selection: Arc<Selection>,
    served: watch::Receiver<()>,
}

impl Debug for Writer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writer").field("selection", &self.selection).finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes for the gateway of this selection; `served` tells of each snapshot that is served from now on.
    pub fn new(client: Client, selection: Selection, served: watch::Receiver<()>) -> Self {
        Self { client, selection: Arc::new(selection), served }
    }

    /// Where it writes.
    pub fn namespace(&self) -> &str {
        &self.selection.namespace
    }

    /// The reference that makes an object this gateway's alone.
    pub fn gateway_ref(&self) -> GatewayRef {
        GatewayRef { name: self.selection.name.clone(), namespace: None }
    }

    fn api<K: Definition>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace())
    }

    /// Creates the object of this name, or changes it to what `make` makes of it as it is now.
    ///
    /// # Errors
    /// What `make` says, or a [`WriteError`]; then nothing was written, unless the API server is away.
    pub async fn write<K: Definition, E: From<WriteError>>(
        &self,
        name: &str,
        make: impl Fn(Option<&K>) -> Result<K, E>,
    ) -> Result<Origin, E> {
        for _ in 0..TRIES {
            let found = self.find::<K>(name).await?;
            let wanted = make(found.as_ref())?;
            match self.apply(name, found.as_ref(), &wanted).await {
                Err(WriteError::Changed) => {}
                other => return Ok(other?),
            }
        }
        Err(WriteError::Changed.into())
    }

    /// Deletes the object of this name; `None`: there was none.
    ///
    /// # Errors
    /// [`WriteError`]; then nothing was deleted, unless the API server is away.
    pub async fn delete<K: Definition>(&self, name: &str) -> Result<Option<Origin>, WriteError> {
        for _ in 0..TRIES {
            let Some(found) = self.find::<K>(name).await? else { return Ok(None) };
            let meta = found.meta();
            let preconditions =
                Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match self.ask(name, self.api::<K>().delete(name, &parameters)).await {
                Ok(_) => return Ok(Some(Origin::of(meta, None))),
                Err(WriteError::Changed) => {}
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Changed)
    }

    /// Waits until this holds of what is served; `false`: it does not in time.
    pub async fn until_served(&self, holds: impl Fn() -> bool) -> bool {
        let mut served = self.served.clone();
        matches!(timeout(SERVED, served.wait_for(|()| holds())).await, Ok(Ok(_)))
    }

    /// The object of this name as the API server has it now, if it is this gateway's to write.
    async fn find<K: Definition>(&self, name: &str) -> Result<Option<K>, WriteError> {
        let Some(found) = self.ask(name, self.api::<K>().get_opt(name)).await? else { return Ok(None) };
        let owner = Owner::of(found.meta());
        if owner != Owner::Platform {
            return Err(self.owned::<K>(name, &owner.to_string()));
        }
        let is_own = |one: &GatewayRef| {
            one.name == self.selection.name && one.namespace.as_deref().unwrap_or(self.namespace()) == self.namespace()
        };
        if found.gateway_refs().is_some_and(|refs| !refs.iter().any(is_own)) {
            return Err(self.owned::<K>(name, "another gateway"));
        }
        Ok(Some(found))
    }

    async fn apply<K: Definition>(&self, name: &str, found: Option<&K>, wanted: &K) -> Result<Origin, WriteError> {
        // What the gateway would not take would never be served.
        let mut labels: BTreeMap<String, String> =
            self.selection.selector.as_ref().and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
        labels.insert(MANAGED_BY.to_owned(), PLATFORM.to_owned());
        let mut metadata = json!({ "name": name, "namespace": self.namespace(), "labels": labels });
        if let Some(version) = found.and_then(|found| found.meta().resource_version.clone()) {
            metadata["resourceVersion"] = version.into();
        }
        let mut manifest = serde_json::to_value(wanted).map_err(|error| WriteError::Refused(error.to_string()))?;
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": metadata,
            "spec": manifest["spec"].take(),
        });
        let parameters = PatchParams::apply(PLATFORM);
        let written = self.ask(name, self.api::<K>().patch(name, &parameters, &Patch::Apply(&patch))).await;
        written.map(|object: K| Origin::of(object.meta(), None)).map_err(|error| match error {
            WriteError::Owned { owner, .. } => self.owned::<K>(name, &owner),
            other => other,
        })
    }

    fn owned<K: Definition>(&self, name: &str, owner: &str) -> WriteError {
        WriteError::Owned {
            owner: owner.to_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: self.namespace().to_owned(),
            name: name.to_owned(),
        }
    }

    async fn ask<T>(&self, name: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
        let answer = match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error| self.understand(name, error)),
            Err(_) => Err(WriteError::Away(format!("no answer within {PATIENCE:?}"))),
        };
        answer.inspect_err(|error| tracing::warn!(namespace = self.namespace(), name, %error, "not written"))
    }

    fn understand(&self, name: &str, error: kube::Error) -> WriteError {
        let kube::Error::Api(status) = error else { return WriteError::Away(error.to_string()) };
        match status.code {
            409 => match holder(&status) {
                Some(owner) => WriteError::Owned {
                    owner: owner.to_string(),
                    kind: String::new(),
                    namespace: self.namespace().to_owned(),
                    name: name.to_owned(),
                },
                None => WriteError::Changed,
            },
            // It was deleted meanwhile.
            404 => WriteError::Changed,
            400 | 422 => WriteError::Refused(status.message),
            401 | 403 => WriteError::Forbidden(status.message),
            _ => WriteError::Away(status.to_string()),
        }
    }
}

/// Who holds a field that an apply would change: named in the cause as `conflict with "MANAGER" using ...`.
fn holder(status: &Status) -> Option<Owner> {
    let causes = &status.details.as_ref()?.causes;
    let cause = causes.iter().find(|cause| cause.reason == "FieldManagerConflict")?;
    Some(Owner::managed_by(cause.message.split('"').nth(1).unwrap_or("another field manager")))
}

/// The name of the object that defines something of this name: the same where it can be, else made plain, with a hash.
pub fn object_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = name.len() <= MAX_NAME
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.chars().all(|c| is_plain(c) || c == '-');
    if is_label {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash = digest.iter().take(4).fold(String::with_capacity(8), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let plain: String = name
        .chars()
        .flat_map(char::to_lowercase)
        .map(|c| if is_plain(c) { c } else { '-' })
        .take(MAX_NAME - 1 - hash.len())
        .collect();
    match plain.trim_matches('-') {
        "" => format!("d-{hash}"),
        plain => format!("{plain}-{hash}"),
    }
}

/// What the API server says to an apply that would change a field of another manager.
#[cfg(test)]
pub(crate) fn conflict(manager: &str) -> serde_json::Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
        "message": "Apply failed with 1 conflict", "details": { "causes": [{ "reason": "FieldManagerConflict",
        "message": format!("conflict with \"{manager}\" using doorman.dev/v1alpha1"), "field": ".spec.description" }] } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_where_they_can_and_are_made_plain_where_not() {
        assert_eq!(object_name("ops"), "ops");
        assert_eq!(object_name("team-a-2"), "team-a-2");
        for (name, start) in
            [("Ops", "ops-"), ("ops team", "ops-team-"), ("Ärzte", "rzte-"), ("***", "d-"), ("-a-", "a-")]
        {
            let object = object_name(name);
            assert!(object.starts_with(start) && object.len() > start.len() + 7, "{name}: {object}");
        }
        assert_ne!(object_name("Ops"), object_name("OPS"));
    }

    #[test]
    fn a_conflict_names_who_holds_the_field() {
        let status: Status = serde_json::from_value(conflict("kubectl-edit")).unwrap();
        assert_eq!(holder(&status), Some(Owner::Other("kubectl".into())));
        assert_eq!(holder(&Status::failure("the object has been modified", "Conflict")), None);
    }

    proptest! {
        #[test]
        fn every_name_makes_a_dns_label(name in ".{1,50}") {
            let object = object_name(&name);
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            prop_assert!(object.len() <= MAX_NAME && object.starts_with(is_plain) && object.ends_with(is_plain), "{}", object);
            prop_assert!(object.chars().all(|c| is_plain(c) || c == '-'), "{}", object);
        }
    }
}
